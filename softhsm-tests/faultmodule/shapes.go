package faultmodule

// Shape is a kind of token that SoftHSM2 is not, as rules for [Control.Set].
type Shape struct {
	Name  string
	Rules []string
}

// NetworkHSM answers over a network, each function that has to ask it in 1 ms, and does 16 things at
// once: at most 16,000 operations per second.
func NetworkHSM() Shape {
	s := Shape{Name: "network", Rules: []string{"token parallel=16"}}
	for _, function := range []string{
		"C_Login", "C_CreateObject", "C_CopyObject", "C_DestroyObject", "C_GetAttributeValue",
		"C_SetAttributeValue", "C_FindObjects", "C_Encrypt", "C_Decrypt", "C_Sign", "C_Verify",
		"C_GenerateKey", "C_GenerateKeyPair", "C_DeriveKey", "C_GenerateRandom",
	} {
		s.Rules = append(s.Rules, function+" latency=1000us")
	}
	return s
}

// OwnIVAtInit chooses the IV of AES-GCM itself and tells it in C_EncryptInit.
func OwnIVAtInit() Shape {
	return Shape{"own-iv-init", []string{"token iv=init"}}
}

// OwnIVAtEncrypt chooses the IV of AES-GCM itself and tells it when the encryption
// has ended, as AWS CloudHSM does.
func OwnIVAtEncrypt() Shape {
	return Shape{"own-iv-encrypt", []string{"token iv=encrypt"}}
}

// NoCopy has no C_CopyObject.
func NoCopy() Shape {
	return Shape{"no-copy", []string{"C_CopyObject error=CKR_FUNCTION_NOT_SUPPORTED"}}
}

// NoSetAttribute refuses C_SetAttributeValue for every object.
func NoSetAttribute() Shape {
	return Shape{"no-set-attribute", []string{"C_SetAttributeValue error=CKR_ACTION_PROHIBITED"}}
}

// NoECDH has no CKM_ECDH1_DERIVE.
func NoECDH() Shape {
	return Shape{"no-ecdh", []string{"token without=CKM_ECDH1_DERIVE"}}
}

// Restricted lacks all of this at once.
func Restricted() Shape {
	s := Shape{Name: "restricted"}
	for _, lacks := range []Shape{OwnIVAtEncrypt(), NoCopy(), NoSetAttribute(), NoECDH()} {
		s.Rules = append(s.Rules, lacks.Rules...)
	}
	return s
}

// Shapes is all of them: what is written for any token passes its tests on each.
func Shapes() []Shape {
	return []Shape{NetworkHSM(), OwnIVAtInit(), OwnIVAtEncrypt(), NoCopy(), NoSetAttribute(), NoECDH(), Restricted()}
}
