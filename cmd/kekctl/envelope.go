package main

import "github.com/kekd/kekd/hierarchy/envelope"

// envelopePrefix begins the text form of every format, also of those that only the daemon knows.
const envelopePrefix = "kekd:"

// envelopeText is the text form of what the daemon answered.
func envelopeText(sealed []byte) (string, error) {
	e, err := envelope.Parse(sealed)
	if err != nil {
		return "", badAnswer("%v", err)
	}
	text, err := e.Text()
	if err != nil {
		return "", badAnswer("%v", err)
	}
	return text, nil
}
