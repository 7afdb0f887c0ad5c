package hsm

import "crypto/sha256"

// OtherFormat is a mark as a later version may write it.
func OtherFormat(mark []byte) []byte {
	b := append([]byte{markFormat + 1}, mark[1:markBody]...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}
