/*
 * What processes share through the counters' file: how often each called what, and the slots of a
 * token that does N things at once. Its layout is read by counters.go.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fault.h"

enum { MAX_PROCESSES = 4096, NAME_SIZE = 32 };
static const uint64_t magic_number = 0x31746e756f63464b; /* "KFcount1" */

struct counts {
	_Atomic uint64_t pid; /* 0: not claimed yet */
	struct {
		_Atomic uint64_t entered, returned;
	} of[FUNCTIONS];
};

struct shared {
	_Atomic uint64_t magic; /* set last */
	uint64_t functions;
	uint64_t counts_at; /* offset of the first counts */
	_Atomic uint64_t claimed;
	char names[FUNCTIONS][NAME_SIZE];
	_Atomic uint64_t busy_until[MAX_PARALLEL];
	struct counts counts[MAX_PROCESSES];
};

/* Without a file. */
static struct counts own_counts;
static _Atomic uint64_t own_busy_until[MAX_PARALLEL];

static _Atomic(struct counts *) counts = &own_counts;
static _Atomic(_Atomic uint64_t *) busy_until = own_busy_until;
static char opened[4096];

static bool prepare(struct shared *shared)
{
	uint64_t magic = atomic_load(&shared->magic);
	if (magic == magic_number)
		return true;
	if (magic != 0)
		return false;
	shared->functions = FUNCTIONS;
	shared->counts_at = offsetof(struct shared, counts);
	for (int f = 0; f < FUNCTIONS; f++)
		strncpy(shared->names[f], function_names[f], NAME_SIZE - 1);
	atomic_store(&shared->magic, magic_number);
	return true;
}

bool shared_open(const char *path)
{
	if (path == NULL)
		path = "";
	if (strcmp(path, opened) == 0)
		return true;
	if (strlen(path) >= sizeof opened) {
		complain("the counters' path is too long");
		return false;
	}
	if (*path == '\0') {
		atomic_store(&counts, &own_counts);
		atomic_store(&busy_until, own_busy_until);
		*opened = '\0';
		return true;
	}

	int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (file < 0) {
		complain("%s: %s", path, strerror(errno));
		return false;
	}
	/* A sparse file; the lock is against another process that prepares it. It is never unmapped:
	 * calls in flight count in it. */
	struct shared *shared = MAP_FAILED;
	if (flock(file, LOCK_EX) == 0 && ftruncate(file, sizeof *shared) == 0)
		shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (shared == MAP_FAILED) {
		complain("%s: %s", path, strerror(errno));
		close(file);
		return false;
	}
	bool ours = prepare(shared);
	flock(file, LOCK_UN); /* the mapping would keep it */
	close(file);
	uint64_t index = ours ? atomic_fetch_add(&shared->claimed, 1) : MAX_PROCESSES;
	if (index >= MAX_PROCESSES) {
		complain("%s: %s", path, ours ? "too many processes" : "not a counters' file");
		return false;
	}
	atomic_store(&shared->counts[index].pid, (uint64_t)getpid());
	atomic_store(&counts, &shared->counts[index]);
	atomic_store(&busy_until, shared->busy_until);
	strcpy(opened, path);
	return true;
}

void shared_entered(enum function function)
{
	atomic_fetch_add_explicit(&atomic_load_explicit(&counts, memory_order_acquire)->of[function].entered, 1,
	                          memory_order_release);
}

void shared_returned(enum function function)
{
	atomic_fetch_add_explicit(&atomic_load_explicit(&counts, memory_order_acquire)->of[function].returned, 1,
	                          memory_order_release);
}

/*
 * A slot is the time until which it is taken, and nobody holds it: a process that dies takes no
 * slot along, and a thread that wakes late costs its own call time, but not the next one in the
 * slot. So N slots of latency L do N/L calls a second as long as more than N are waiting.
 */
uint64_t shared_reserve(uint64_t now, uint64_t latency, unsigned parallel)
{
	if (parallel == 0)
		return now + latency;
	_Atomic uint64_t *slots = atomic_load_explicit(&busy_until, memory_order_acquire);
	for (;;) {
		unsigned first = 0;
		uint64_t busy = atomic_load(&slots[0]);
		for (unsigned i = 1; i < parallel; i++) {
			uint64_t other = atomic_load(&slots[i]);
			if (other < busy) {
				busy = other;
				first = i;
			}
		}
		uint64_t until = (busy > now ? busy : now) + latency;
		if (atomic_compare_exchange_strong(&slots[first], &busy, until))
			return until;
	}
}
