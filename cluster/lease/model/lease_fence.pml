/*
 * Leases and fences: once a fence has returned, no last check before a reply passes by a state from before the
 * closing. README.md maps every variable and step to the code, and says what is left out and why.
 *
 * One node is looked at, A: what is promised is promised of each node by itself. The others do whatever is
 * worst for it: they lead, they propose anything, and of those who wait the quickest counts.
 *
 * Each #ifdef leaves one rule out, and spin has to find a way around the promise then: scripts/model.
 */

mtype = {
	DISABLE, ENABLE,
	LOWER, RAISE,	/* max_staleness */
	REMOVE,		/* A */
	REGISTER,	/* A's second run, which leaves the first one behind */
	REPLACE,	/* the same, where it has proved that the first one is over */

	NONE,
	ASKED,		/* t0 is noted, and the request sent */
	PROPOSED,	/* a leader has read it, and proposed a Tick after that */
	ANSWERED,
	HELD,		/* this node's state has reached the Tick */
	LOOKING,	/* a last check: the lease is read, and then the state */
	IN_TOKEN	/* without a second check: that was the only one */
}

/* Bounds, by default those of the quickest run. */
#ifndef COMMANDS
#define COMMANDS 2	/* in the log; Ticks, and records of waits that are over, are not counted */
#endif
#ifndef T_MAX
#define T_MAX 1		/* the longest max_staleness, in ticks of time: it is so in the beginning */
#endif
#ifndef ELECTIONS
#define ELECTIONS 1
#endif
#define BIT(n) (1 << (n))
#if defined(SETTINGS) && defined(MEMBERS)
#define KINDS (BIT(DISABLE) | BIT(LOWER) | BIT(REMOVE))
#elif defined(SETTINGS)
#define KINDS (BIT(DISABLE) | BIT(ENABLE) | BIT(LOWER) | BIT(RAISE))
#elif defined(MEMBERS)
#define KINDS (BIT(DISABLE) | BIT(ENABLE) | BIT(REMOVE) | BIT(REGISTER) | BIT(REPLACE))
#elif COMMANDS > 2
#define KINDS (BIT(DISABLE) | BIT(ENABLE))
#else
#define KINDS BIT(DISABLE)
#endif

/* The log, and the state after each command. Whose FSM is at an index has that state. */
byte commit;			/* index of the last command; what is not committed is not in the model */
byte T[COMMANDS + 1];		/* max_staleness */
bit open[COMMANDS + 1];		/* the tenant is not disabled */
byte member[COMMANDS + 1];		/* the registered run of A, 1 or 2; 0: A is no member */

/* The fence, or the tombstone, that a command made. */
typedef Wait {
	bit ours;		/* our run is among its holders; no other one is of any consequence here */
	byte longest;		/* the max_staleness by which somebody may serve who has not heard of it */
	byte from;		/* of a lowering: what counts until its fence is complete */
	byte ticks		/* since it was seen to be committed, on the clock of who waits */
}
Wait wait[COMMANDS + 1];
byte pending;			/* bits: fences whose end is not recorded */
byte repeated;			/* bits: disables of what was disabled, which have not returned */
byte tombstone;			/* index at which our run was left behind; 0: it was not, or that was waited for */
byte fenced;			/* the last index whose fence has returned */

/* An election. Who led before does not know of it, and has applied all up to `stale`. */
bit deposed;
byte stale;

/* Our run of A, from one request for a lease to the last check that goes by it. */
byte us;			/* which run it is, 1 or 2 */
mtype at;			/* NONE to IN_TOKEN */
byte tick;			/* all that was committed when the Tick was proposed; then the lease's index */
bit overtaken;			/* the Tick was proposed in a term that is over */
byte age;			/* since t0, on the clock of who waits */
byte applied;			/* index of the state */
byte seen;			/* index of the state that the check has read */
byte acked;			/* it is never again served from a state before this one */
byte told;			/* and nothing from before is in flight: who waits has been told so */

byte c, i, x;			/* scratch; 0 between steps */

/* A clock may lose one tick while a lease lasts (the 1 %); and one reads the clock early in a tick, the other
 * late in it (the 50 ms). */
#ifdef NO_MARGIN_FOR_RATES
#define MARGIN 1
#else
#define MARGIN 2
#endif

/* ---- What package state does with a command ---- */

/* c = the max_staleness that somebody may go by when command x comes: the present one, or what an incomplete
 * lowering came from. */
inline counting() {
	c = T[x - 1];
#ifndef LOWERED_AT_ONCE
	for (i : 1 .. x - 1) {
		if
		:: (pending & BIT(i)) && wait[i].from > c -> c = wait[i].from
		:: else
		fi
	}
	i = 0
#endif
}

/* Who may hold a lease and is registered no more stays behind, and is waited for. */
inline bury() {
#ifndef NO_TOMBSTONES
	if
	:: member[x - 1] == us -> counting(); wait[x].longest = c; tombstone = x
	:: else
	fi
#else
	skip
#endif
}

/* A closing waits for those who may hold a lease in the state at this index. */
inline putUpFence() {
	counting();
	pending = pending | BIT(x);
	wait[x].longest = c;
	wait[x].ours = (member[x] == us || tombstone);
#ifdef WAIT_FROM_THE_PROPOSAL
	do
	:: wait[x].ticks < c + MARGIN -> wait[x].ticks++
	:: break
	od
#endif
}

inline lower() {
	T[x]--;
	putUpFence();
#ifdef OVERLAPPING_LOWERINGS_APART
	wait[x].longest = T[x - 1];
#endif
	wait[x].from = wait[x].longest
}

#define MAY(kind) (commit < COMMANDS && (KINDS & BIT(kind)))

inline command(what) {
	commit++;
	x = commit;
	T[x] = T[x - 1];
	open[x] = open[x - 1];
	member[x] = member[x - 1];
	printf("%d: %e\n", x, what)
}

inline done() { c = 0; x = 0 }

/* A first run that is over does nothing more, so that it is none to look at. */
#ifdef REPLACED_WITHOUT_PROOF
#define FIRST_IS_DEAD true
#else
#define FIRST_IS_DEAD (us == 2)
#endif

proctype Commands() {
	do
	:: atomic { MAY(DISABLE) ->
		command(DISABLE);
		if
		:: open[x] -> open[x] = 0; putUpFence()
		:: else -> repeated = repeated | BIT(x)
		fi;
		done()
	}
	:: atomic { MAY(ENABLE) && !open[commit] -> command(ENABLE); open[x] = 1; done() }
	:: atomic { MAY(LOWER) && T[commit] > 1 -> command(LOWER); lower(); done() }
	:: atomic { MAY(RAISE) && T[commit] < T_MAX -> command(RAISE); T[x]++; done() }
	:: atomic { MAY(REMOVE) && member[commit] -> command(REMOVE); member[x] = 0; bury(); done() }
	:: atomic { MAY(REGISTER) && member[commit] == 1 -> command(REGISTER); member[x] = 2; bury(); done() }
	:: atomic { MAY(REPLACE) && member[commit] == 1 && FIRST_IS_DEAD -> command(REPLACE); member[x] = 2; done() }
	:: d_step { ELECTIONS && !deposed -> deposed = 1; stale = commit; overtaken = (at == PROPOSED); printf("another leader\n") }
	od
}

/* ---- Who waits ---- */

#ifdef OTHER_INCARNATION_ACK
#define HAS_ACKED(f) (told >= f || us == 1 && member[commit] == 2)
#else
#define HAS_ACKED(f) (told >= f)
#endif
#ifdef RAFT_CONFIG_INSTEAD_OF_MEMBERS_AT_D
#define OURS(f) (member[commit] == us)
#else
#define OURS(f) wait[f].ours
#endif
#ifdef SETTING_OF_NOW
#define LONGEST(f) T[commit]
#else
#define LONGEST(f) wait[f].longest
#endif
#define RAN_OUT(f) (wait[f].ticks >= LONGEST(f) + MARGIN)
#define IS_OVER(f) (!OURS(f) || HAS_ACKED(f) || RAN_OUT(f))
#ifdef REPEATED_AT_ONCE
#define NOTHING_PENDING true
#else
#define NOTHING_PENDING (pending == 0)
#endif

inline returns() {
	if
	:: x > fenced -> fenced = x; printf("the fence at %d returns\n", x)
	:: else
	fi
}

inline recorded() {
	pending = pending & ~BIT(x);
	wait[x].ours = 0; wait[x].longest = 0; wait[x].from = 0; wait[x].ticks = 0
}

proctype Waits() {
	do
	/* A fence returns, and its end is recorded or is not. */
	:: atomic { pending ->
		select(x : 1 .. commit);
		if
		:: (pending & BIT(x)) && IS_OVER(x) ->
			returns();
			if
			:: recorded()
			:: true
			fi
		:: else
		fi;
		x = 0
	}
	/* A repeated disable made no fence, and waits for all that are incomplete. */
	:: atomic { repeated && NOTHING_PENDING ->
		select(x : 1 .. commit);
		if
		:: repeated & BIT(x) -> repeated = repeated & ~BIT(x); returns()
		:: else
		fi;
		x = 0
	}
	/* The tombstone has been waited for. */
	:: d_step { tombstone && RAN_OUT(tombstone) -> wait[tombstone].longest = 0; wait[tombstone].ticks = 0; tombstone = 0; printf("the tombstone is retired\n") }
	od
}

/* ---- A: its lease, its checks, its acknowledgements ---- */

inline forget() { at = NONE; tick = 0; overtaken = 0; age = 0; seen = 0 }

inline pass() {
	printf("a last check passes, by state %d\n", seen);
	assert(seen >= fenced); /* the promise */
	forget()
}

#ifdef NO_REGISTRATION
#define IS_MEMBER(s) (member[s] != 0)
#else
#define IS_MEMBER(s) (member[s] == us)
#endif
#ifdef INDEX_NOT_COMPARED
#define COVERED(s) true
#else
#define COVERED(s) (s >= tick)
#endif
#ifdef FORGETS_WHAT_IT_ACKNOWLEDGED
#define NOT_BEHIND(s) true
#else
#define NOT_BEHIND(s) (s >= acked)
#endif
/* By A's own clock, which loses the first tick. */
#define FRESH(s) (age <= T[s] + 1)
#ifdef CLOCK_BEFORE_THE_STATE
#define ALLOWS(s) (FRESH(s) && COVERED(s) && NOT_BEHIND(s) && IS_MEMBER(s) && open[s])
#else
#define ALLOWS(s) (COVERED(s) && NOT_BEHIND(s) && IS_MEMBER(s) && open[s])
#endif
#if defined(TIMER_INSTEAD_OF_CLOCK) || defined(CLOCK_BEFORE_THE_STATE)
#define FRESH_NOW true
#else
#define FRESH_NOW FRESH(seen)
#endif

/* A lease that proves nothing ever more is forgotten, so that there are fewer states; not where it may still be used. */
#if defined(TIMER_INSTEAD_OF_CLOCK) || defined(NO_SECOND_CHECK)
#define DROPS false
#else
#define DROPS true
#endif

#ifdef JOINED_OLD_TICK
byte underWay;			/* 1 + `tick` of one that somebody else has asked for */
#endif
#ifdef STATE_BEFORE_LEASE
byte early;			/* 1 + index of a state that was read before the lease */
#define READ (early - 1)
#define LOOKS (at == LOOKING || early)
#else
#define READ applied
#define LOOKS (at == LOOKING)
#endif

proctype A() {
	do
	/* Its FSM; and a snapshot that comes late. */
	:: d_step { applied < commit -> applied++; printf("A is at %d\n", applied) }
#ifndef NO_LATE_SNAPSHOT
	:: d_step { applied > 0 -> applied--; printf("a late snapshot takes A back to %d\n", applied) }
#endif
	/* A renewal: t0, the request, a Tick that is proposed after it was read, and an answer once that is
	 * applied as committed in the leader's own term. */
	:: d_step { at != LOOKING -> forget(); at = ASKED; printf("A asks for a lease\n") }
	:: d_step { at == ASKED -> at = PROPOSED; tick = commit; printf("the leader proposes a Tick after %d\n", tick) }
	:: d_step { at == ASKED && deposed -> at = PROPOSED; tick = stale; overtaken = 1; printf("a deposed leader proposes a Tick after %d\n", tick) }
	:: d_step { at == PROPOSED && !overtaken -> at = ANSWERED; printf("it answers\n") }
#ifdef ANSWER_BEFORE_APPLY
	:: d_step { at == PROPOSED && overtaken -> at = ANSWERED; printf("it answers at once\n") }
#endif
#ifdef ANSWER_WHATEVER_STANDS_THERE
	:: d_step { at == PROPOSED && overtaken && commit > tick -> at = ANSWERED; printf("it answers by another's entry\n") }
#endif
#ifdef VERIFYLEADER_INSTEAD_OF_TICK
	/* Those whose word counts have not heard of the election. */
	:: d_step { at == ASKED && deposed -> at = ANSWERED; tick = stale; printf("a deposed leader is verified at %d\n", stale) }
#endif
#ifdef JOINED_OLD_TICK
	:: d_step { !underWay -> underWay = 1 + commit; printf("a Tick is proposed after %d\n", commit) }
	:: d_step { at == ASKED && underWay -> at = PROPOSED; tick = underWay - 1; printf("the leader joins that Tick\n") }
#endif
#ifdef NO_NONCE
	:: d_step { at == PROPOSED || at == ANSWERED -> age = 0; printf("A asks again, and takes the first answer\n") }
#endif
	:: d_step { at == ANSWERED && applied >= tick -> at = HELD; printf("A has a lease of %d\n", tick)
#ifdef ARRIVAL_INSTEAD_OF_ISSUE
		; age = 0
#endif
	}

	/* The last check: the lease, the state, and then the clock, with what it has acknowledged. A first check
	 * could only refuse what this one refuses too. */
#ifdef STATE_BEFORE_LEASE
	:: d_step { !early -> early = 1 + applied; printf("A reads state %d\n", applied) }
	:: d_step { early && at != LOOKING -> early = 0 }
	:: d_step { at == HELD && early && ALLOWS(READ) -> seen = READ; tick = 0; early = 0; at = LOOKING; printf("A reads the lease\n") }
#else
	:: d_step { at == HELD && ALLOWS(READ) -> seen = READ; tick = 0; at = LOOKING; printf("A reads the lease, and state %d\n", seen) }
#endif
	:: d_step { at == LOOKING ->
		if
#ifdef NO_SECOND_CHECK
		:: FRESH_NOW -> at = IN_TOKEN; printf("A asks the token\n")
#else
		:: FRESH_NOW -> pass()
#endif
		:: else -> forget()
		fi
	}
	:: d_step { at == IN_TOKEN -> pass() }
#ifdef TIMER_INSTEAD_OF_CLOCK
	:: d_step { at == HELD && !FRESH(applied) -> forget(); printf("the timer fires\n") }
#endif

	/* An acknowledgement: applied, noted, what is in flight over, told. */
	:: d_step { applied > acked && wait[applied].longest -> acked = applied; printf("A will not go behind %d\n", acked) }
#ifdef ACK_BEFORE_WHAT_IS_IN_FLIGHT
	:: d_step { acked > told -> told = acked; printf("A acknowledges %d\n", told) }
#else
	:: d_step { acked > told && !LOOKS -> told = acked; printf("A acknowledges %d\n", told) }
#endif
	od
}

/* ---- Time, on the clock of who waits. Pauses are that it passes between any two steps. ---- */

proctype Time() {
	do
	:: atomic {
		printf("a tick of time\n");
		for (i : 1 .. commit) {
			wait[i].ticks = wait[i].ticks + (wait[i].ticks < wait[i].longest + MARGIN && wait[i].longest)
		}
		i = 0;
		if
		:: at != NONE && age <= T_MAX + 1 -> age++
		:: at != NONE && age > T_MAX + 1 && DROPS -> forget() /* it proves nothing ever more */
		:: else
		fi
	}
	od
}

init {
	atomic {
		T[0] = T_MAX; open[0] = 1; member[0] = 1; at = NONE;
		if
		:: us = 1
		:: us = 2
		fi;
		run Commands(); run Waits(); run A(); run Time()
	}
}
