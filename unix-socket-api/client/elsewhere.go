package client

import (
	"errors"
	"strings"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/unix-socket-api/apierr"
	"github.com/kekd/kekd/unix-socket-api/kekdv1"
)

// Which calls may be made again at another socket, and after which errors.

// reads are the calls of administration that change nothing.
var reads = map[string]bool{
	kekdv1.AdminService_GetStatus_FullMethodName:     true,
	kekdv1.AdminService_Doctor_FullMethodName:        true,
	kekdv1.AdminService_ListTenants_FullMethodName:   true,
	kekdv1.AdminService_GetTenant_FullMethodName:     true,
	kekdv1.AdminService_GetFenceBound_FullMethodName: true,
	kekdv1.AdminService_ListKeys_FullMethodName:      true,
	kekdv1.AdminService_GetKey_FullMethodName:        true,
	kekdv1.AdminService_ListServices_FullMethodName:  true,
	kekdv1.AdminService_ListPolicies_FullMethodName:  true,
	kekdv1.AdminService_ExplainPolicy_FullMethodName: true,
	kekdv1.AdminService_VerifyAudit_FullMethodName:   true,
	kekdv1.AdminService_ListNodes_FullMethodName:     true,
	kekdv1.AdminService_ListOrphans_FullMethodName:   true,
}

// elsewhereOf tells after which errors a method may be called elsewhere.
func elsewhereOf(method string) func(error) bool {
	switch {
	case strings.HasPrefix(method, "/"+kekdv1.KeyService_ServiceDesc.ServiceName+"/"):
		return keysElsewhere
	case reads[method]:
		return readElsewhere
	}
	return changeElsewhere
}

// keysElsewhere: no operation with data keys does harm twice, and each is another node's as well.
func keysElsewhere(err error) bool {
	return readElsewhere(err) || errors.Is(err, hierarchy.ErrHSMUnavailable) || errors.Is(err, hierarchy.ErrAuditUnavailable)
}

// readElsewhere: what a token or a journal says of itself, another's does not.
func readElsewhere(err error) bool {
	return errors.Is(err, ErrUnavailable) || errors.Is(err, hierarchy.ErrStale)
}

// changeElsewhere: a connection that breaks leaves open what was done. What a daemon says itself does
// not: it proposes nothing while it stops, nor without a leader.
func changeElsewhere(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Origin != apierr.FromTransport && readElsewhere(e)
}

func notSent(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Origin == apierr.FromNobody
}
