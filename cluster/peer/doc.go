// Package peer is the one port on which the nodes of a cluster reach each other: TCP, TLS 1.3 with
// certificates on both sides, a hello, then Raft or gRPC.
//
// What it promises, and what each promise is there for:
//
//   - Both ends have a certificate of an authority in the CA file, with the name of their node in it,
//     and each has said, inside of TLS, which node of which cluster and of which epoch it is. Nodes of
//     different clusters or epochs never exchange a message. Who is refused, and who refuses, is told
//     why.
//   - A message of Raft reaches the node only from a voter, and only if it says that it is from the
//     node that is at the other end of the connection. A node that was removed or that lost its vote
//     is not listened to any more, also on the connections that it has.
//   - Certificates are read again when their files change. Connections end when the other side's
//     certificate does not verify any more.
//   - Strangers cost little: until a connection has said hello, what it may send, how long it may
//     take, and how many there are of it, is bounded, for each address as well.
//   - A peer that is gone from the network is noticed within one to three seconds, whatever is sent.
//
// Left to others: who is a member and who votes ([Directory]), what may be called on a connection
// (the gRPC server; [FromContext] says who calls, and for which service), and what a newer epoch
// means for this node ([Config.Refused]).
package peer
