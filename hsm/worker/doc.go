// Package worker serves the port of package hsm by child processes: a PKCS#11 module that
// crashes, hangs or loses its token takes no daemon along.
//
// [Open] starts the workers and gives a [Pool], which is a [hsm.Token], [hsm.Manager],
// [hsm.Agreer], [hsm.Marks] and [hsm.Examiner]. [Serve] is what a worker process runs. They talk over a socket pair, in frames
// that carry many operations each. Nothing here loads a module: what a worker opens is handed
// to Serve.
//
// # What it promises
//
// A worker that ends, for whatever reason, is replaced. What was in flight to it is run again by
// another, since operations leave nothing in the token and changes find what an earlier try
// made; what has ended three workers is not tried a fourth time. A worker that somebody kills, an
// operator or a kernel that is out of memory, ends no operation; but what was in flight is run by
// itself then, and an operation whose worker is killed twice while it runs nothing else is given
// up. A change whose manager is killed is tried until its caller's time is up.
//
// Calls end at their deadline though a worker hangs. A worker that is silent is killed, and so is
// one that leaves a single operation undone while it does others.
//
// A PIN that the token refuses is refused once: nobody logs in again before the daemon is
// restarted. Replacements come after a growing wait, so that a module that crashes at each start
// does not log in more often than once in two seconds.
//
// Exactly one worker, the manager, changes objects, and its process is gone before the next one
// begins. The others hear of each change before it is reported.
//
// What a worker puts right of where its token is kept, while it opens it or later, is told to the
// daemon ([Config.Repaired]): it may be what a worker that was killed has left.
//
// Queues are fair between lanes: a lane that asks for little overtakes what others have piled
// up, and no lane can fill the queue for the others.
//
// No worker outlives its daemon: the kernel kills it (PDEATHSIG), and the end of the socket
// ends it. Buffers that held data keys are wiped on both sides. What the kernel holds between
// two processes is out of reach, and so is what Go saves of registers when it preempts.
//
// # What it leaves to others
//
// How a worker is started and hardened, where the PIN comes from, how a token is opened and
// kept on disk, and who may use which key.
package worker
