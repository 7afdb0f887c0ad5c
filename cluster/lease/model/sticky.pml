/*
 * Marks: a disable that has returned stays, also when the disk of one of three voters is taken back to an earlier
 * moment. README.md maps every variable and step to the code, and says what is left out and why.
 *
 * Each #ifdef leaves one rule out, and spin has to find a way around the promise then: scripts/model.
 */

#ifndef TERMS
#define TERMS 3		/* elections from the first leader on are one less */
#endif
#define LENGTH 2	/* of a log */

/* An entry is 4 x its term + its kind. */
#define TICK 1		/* also what a leader begins with */
#define DISABLE 2
#define LATE 3		/* a Tick that a leader without the disable proposes, after that has returned */
#define ENTRY(term, kind) ((term) * 4 + (kind))
#define TERM(e) ((e) / 4)
#define KIND(e) ((e) % 4)

/* What a voter has on disk. The log is raft's: what is answered has been synced. */
typedef Disk {
	byte term;
	byte vote;		/* in that term: 1 + whom, 0 nobody yet, NOBODY: it is given away */
	byte last;
	byte e[LENGTH + 1]
}
#define NOBODY 4
Disk disk[3];
Disk copy;			/* of disk 0 at one moment */
bit copied;

/* Node 0's mark, which is never taken back. */
byte markTerm;
byte markEntry;			/* term of the last entry, and its index */
byte markIndex;

/* What the processes know. */
mtype = { FOLLOWER, CANDIDATE, LEADER, REFUSED }
mtype role[3];
byte votes[3];			/* bits: who has voted for this candidate */
typedef Match { byte by[3] }
Match match[3];			/* of a leader: up to where a follower has told that it has the log */
byte committed;			/* the disable that was, by some leader: its index, 0: none; and the entry */
byte entry;
byte held;			/* bits: voters that have acknowledged to hold it */
bit returned;			/* the disable */

#ifdef MARK_AFTER_ACK
bit owesTerm, owesEntry;	/* a crash forgets it */
#endif

byte i, x;			/* scratch, 0 between steps */

#define BIT(n) (1 << (n))
#define MAJORITY(s) ((s) == 3 || (s) == 5 || (s) == 6 || (s) == 7)
#define RUNS(n) (role[n] != REFUSED)
#define LAST(n) disk[n].e[disk[n].last]
#define UP_TO_DATE(a, b) (TERM(LAST(a)) > TERM(LAST(b)) || (TERM(LAST(a)) == TERM(LAST(b)) && disk[a].last >= disk[b].last))

/* x = the index of the disable in the log of n, or 0. */
inline find(n) {
	x = disk[n].last;
	do
	:: x > 0 && KIND(disk[n].e[x]) != DISABLE -> x--
	:: else -> break
	od
}

inline stepDown(n) {
	role[n] = FOLLOWER; votes[n] = 0;
	match[n].by[0] = 0; match[n].by[1] = 0; match[n].by[2] = 0
}

inline append(n, kind) {
	disk[n].last++;
	disk[n].e[disk[n].last] = ENTRY(disk[n].term, kind);
	printf("node %d appends entry %d of term %d, kind %d\n", n, disk[n].last, disk[n].term, kind)
}

/* Disk, then mark, then answer. A crash between disk and mark leaves what was never answered, so that both are one
 * step here. */
inline mark() {
	markTerm = (disk[0].term > markTerm -> disk[0].term : markTerm)
}
inline markLast() {
	markEntry = TERM(LAST(0)); markIndex = disk[0].last
}
inline marksTerm(n) {
	if
#ifdef MARK_AFTER_ACK
	:: n == 0 -> owesTerm = 1
#elif !defined(NO_MARK_OF_THE_TERM)
	:: n == 0 -> mark()
#endif
	:: else
	fi
}
inline marksEntry(n) {
	if
#ifdef MARK_AFTER_ACK
	:: n == 0 -> owesEntry = 1
#else
	:: n == 0 -> markLast()
#endif
	:: else
	fi
}

#ifdef INDEX_ONLY
#define BEHIND (disk[0].term < markTerm || disk[0].last < markIndex)
#elif defined(ROLLED_BACK_VOTES)
#define BEHIND false
#else
#define BEHIND (disk[0].term < markTerm || TERM(LAST(0)) < markEntry || (TERM(LAST(0)) == markEntry && disk[0].last < markIndex))
#endif

/* Who holds the disable for good: an entry of an older term may yet be replaced. */
#ifdef OLDER_TERM_ACK
#define COUNTS(n) true
#else
#define COUNTS(n) (TERM(LAST(n)) == disk[n].term)
#endif
#ifdef NO_MAJORITY
#define IS_HELD true
#else
#define IS_HELD MAJORITY(held)
#endif

proctype Voter(byte n) {
	do
	/* An election. */
	:: d_step { RUNS(n) && disk[n].term < TERMS ->
		stepDown(n);
		disk[n].term++;
		disk[n].vote = 1 + n;
		marksTerm(n);
		role[n] = CANDIDATE;
		votes[n] = BIT(n);
		printf("node %d stands in term %d\n", n, disk[n].term)
	}
	:: d_step { role[n] == CANDIDATE && MAJORITY(votes[n]) && disk[n].last < LENGTH ->
		stepDown(n);
		role[n] = LEADER;
		printf("node %d leads in term %d\n", n, disk[n].term);
		find(n);
		append(n, (returned && x == 0 -> LATE : TICK));
		x = 0
	}
	/* A leader's commands. */
	:: d_step { role[n] == LEADER && disk[n].last < LENGTH ->
		find(n);
		if
		:: x == 0 && returned -> append(n, LATE)
		:: x == 0 && !returned -> append(n, DISABLE)
		:: else
		fi;
		x = 0
	}
	/* What a majority has is committed, once an entry of the leader's own term is among it. */
	:: d_step { role[n] == LEADER ->
		i = disk[n].last;
		do
		:: i > 0 && match[n].by[(n + 1) % 3] < i && match[n].by[(n + 2) % 3] < i -> i--
		:: else -> break
		od;
		if
		:: i > 0 && TERM(disk[n].e[i]) == disk[n].term ->
			find(n);
			if
			:: x > 0 && x <= i && !committed -> committed = x; entry = disk[n].e[x]
			:: else
			fi;
			do
			:: i > 0 -> assert(KIND(disk[n].e[i]) != LATE); i-- /* the promise */
			:: else -> break
			od
		:: else
		fi;
		i = 0; x = 0
	}
	/* An acknowledgement to whoever waits, after the disable was applied. */
	:: d_step { RUNS(n) && committed && !returned && !(held & BIT(n)) && disk[n].e[committed] == entry && COUNTS(n) ->
		held = held | BIT(n);
		marksEntry(n);
		printf("node %d holds the disable, in term %d\n", n, disk[n].term)
	}
	od
}

/* What n does when p asks. */
proctype Pair(byte n, p) {
	do
	/* A higher term: it is on disk before anything else is done about it. */
	:: d_step { RUNS(n) && (role[p] == CANDIDATE || role[p] == LEADER) && disk[n].term < disk[p].term ->
		stepDown(n);
		disk[n].term = disk[p].term;
		disk[n].vote = 0;
		marksTerm(n)
	}
	:: d_step { role[n] == FOLLOWER && role[p] == CANDIDATE && disk[n].term == disk[p].term && disk[n].vote == 0 && UP_TO_DATE(p, n) ->
		disk[n].vote = 1 + p;
		votes[p] = votes[p] | BIT(n);
		printf("node %d votes for %d in term %d\n", n, p, disk[p].term)
	}
	/* The first entry that n has not, or has another in the place of. */
	:: d_step { RUNS(n) && role[n] != LEADER && role[p] == LEADER && disk[n].term == disk[p].term ->
		role[n] = FOLLOWER;
		votes[n] = 0;
		i = 1;
		do
		:: i <= disk[p].last && i <= disk[n].last && disk[n].e[i] == disk[p].e[i] -> i++
		:: else -> break
		od;
		if
		:: i <= disk[p].last ->
			disk[n].e[i] = disk[p].e[i];
			disk[n].last = i;
			printf("node %d has entry %d of leader %d\n", n, i, p);
			x = i;
			do
			:: i < LENGTH -> i++; disk[n].e[i] = 0
			:: else -> break
			od
		:: else -> x = disk[p].last
		fi;
		match[p].by[n] = (match[p].by[n] < x -> x : match[p].by[n]);
		i = 0; x = 0
	}
	od
}

inline copyDisk(from, to) {
	to.term = from.term; to.vote = from.vote; to.last = from.last;
	for (i : 1 .. LENGTH) { to.e[i] = from.e[i] }
	i = 0
}

proctype Rest() {
	do
	/* Whoever waits is told by a majority. */
	:: d_step { committed && !returned && IS_HELD -> returned = 1; held = 0; printf("the disable returns\n") }
	/* A copy of disk 0 is made, and put back; the node starts again, or does not. */
	:: d_step { !copied -> copied = 1; copyDisk(disk[0], copy); printf("disk 0 is copied: term %d, last entry %d of term %d\n", copy.term, copy.last, TERM(LAST(0))) }
	:: d_step { copied && RUNS(0) ->
		stepDown(0);
		copyDisk(copy, disk[0]);
#ifdef MARK_AFTER_ACK
		owesTerm = 0; owesEntry = 0;
#endif
		printf("disk 0 is put back\n");
		if
		:: BEHIND -> role[0] = REFUSED
		:: else ->
			mark();
#ifndef VOTES_AGAIN
			disk[0].vote = (disk[0].vote == 0 -> NOBODY : disk[0].vote)
#endif
		fi
	}
#ifdef MARK_AFTER_ACK
	:: d_step { owesTerm -> owesTerm = 0; mark(); printf("node 0 marks its term\n") }
	:: d_step { owesEntry -> owesEntry = 0; markLast(); printf("node 0 marks its last entry\n") }
#endif
	od
}

init {
	atomic {
		for (i : 0 .. 2) { disk[i].term = 1; role[i] = FOLLOWER }
		markTerm = 1;
		if
		:: i = 0
		:: i = 1
		fi;
		role[i] = LEADER;
		disk[0].vote = 1 + i; disk[1].vote = 1 + i; disk[2].vote = 1 + i;
		i = 0;
		run Voter(0); run Voter(1); run Voter(2);
		run Pair(0, 1); run Pair(0, 2); run Pair(1, 0); run Pair(1, 2); run Pair(2, 0); run Pair(2, 1);
		run Rest()
	}
}
