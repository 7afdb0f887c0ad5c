package peer

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
)

// protocol is agreed in the handshake (ALPN), so that no other service with a certificate of the
// same authority can be made to pass for a node.
const protocol = "kekd-peer/1"

// serverTLS is for one handshake: the next may see other files.
func (m *material) serverTLS() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{protocol},
		Certificates:           []tls.Certificate{m.cert},
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              m.roots,
		SessionTicketsDisabled: true, // who resumes has his certificate looked at by nobody
		VerifyConnection:       checkProtocol,
	}
}

// clientTLS is for one handshake. The server's certificate has to be of one of the roots, and what
// accept says of it: nothing is sent to any other server.
func (m *material) clientTLS(roots *x509.CertPool, accept func(*x509.Certificate) error) *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		NextProtos:   []string{protocol},
		Certificates: []tls.Certificate{m.cert},
		// Go's own check wants a name, which who joins does not know, and would take a wildcard for it.
		// What it does beyond that, VerifyConnection does; it runs in every handshake.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if err := checkProtocol(s); err != nil {
				return err
			}
			if _, err := verifyChain(s.PeerCertificates, roots, x509.ExtKeyUsageServerAuth); err != nil {
				return err
			}
			return accept(s.PeerCertificates[0])
		},
	}
}

func checkProtocol(s tls.ConnectionState) error {
	if s.NegotiatedProtocol != protocol {
		return fmt.Errorf("%w: the other side speaks TLS, but not %s", ErrProtocol, protocol)
	}
	return nil
}
