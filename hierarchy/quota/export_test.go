package quota

// Size is how many owners of limits something is counted for.
func (u *Uses) Size() (n int) {
	u.counts.Range(func(any, any) bool { n++; return true })
	return n
}
