package client

import "github.com/kekd/kekd/unix-socket-api/apierr"

// Error is what a call fails with.
type Error = apierr.Error

// ErrUnavailable is what an [*Error] matches when no daemon was there to answer.
var ErrUnavailable = apierr.ErrUnavailable

// FromError reads the error of a gRPC call that was not made through this package. It is nil
// for nil, and else an [*Error].
func FromError(err error) error { return apierr.FromStatus(err) }
