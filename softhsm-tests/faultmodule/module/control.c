/* The control file: when it is read again, and the plan in force. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fault.h"

enum { MAX_FILE = 1 << 16 };
static const int64_t look_every = 1000000; /* ns */

static struct plan no_faults, refusing = {.malformed = true};

/* Calls in flight may hold any plan that ever was in force, so none is freed: a test reads a few
 * of 10 kB each. */
static _Atomic(struct plan *) current = &refusing;

/* When the last look *began* that has ended. A call that begins a millisecond after the file was
 * changed therefore sees the change, whichever thread does the looking. */
static _Atomic uint64_t looked;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Under the lock: */
static char *path;
static bool fixed;      /* refuse, whatever the file says */
static bool was_there;  /* at the last look, and what it was: */
static struct stat was;

static bool unchanged(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
	       a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

/* Reads all of the file into a new string. */
static const char *read_text(int file, char **text)
{
	*text = malloc(MAX_FILE);
	if (*text == NULL)
		return "no memory";
	size_t size = 0;
	while (size < MAX_FILE) {
		ssize_t n = read(file, *text + size, MAX_FILE - size);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return "cannot be read";
		if (n == 0)
			break;
		size += (size_t)n;
	}
	if (size == MAX_FILE)
		return "too large";
	(*text)[size] = '\0';
	return strlen(*text) == size ? NULL : "a NUL in the text";
}

static struct plan *read_plan(int file)
{
	struct plan *plan = calloc(1, sizeof *plan);
	if (plan == NULL)
		return &refusing;
	char *text;
	unsigned line = 0;
	const char *wrong = read_text(file, &text);
	if (wrong == NULL)
		wrong = plan_parse(plan, text, &line);
	free(text);
	if (wrong != NULL) {
		complain("%s:%u: %s: every call is refused", path, line, wrong);
		plan->malformed = true;
	}
	plan->previous = atomic_load(&current);
	return plan;
}

/* Called under the lock. A look opens nothing while the file stays as it is: it also works for a
 * process that has no file descriptor left. */
static void look(void)
{
	struct stat is;
	bool found = path != NULL && stat(path, &is) == 0;
	if (found && was_there && unchanged(&is, &was))
		return;
	int file = found ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	was_there = file >= 0 && fstat(file, &was) == 0;
	if (was_there) {
		atomic_store(&current, read_plan(file));
	} else if (path == NULL || errno == ENOENT || errno == ENOTDIR) {
		atomic_store(&current, &no_faults);
	} else if (atomic_exchange(&current, &refusing) != &refusing) {
		complain("%s: %s: every call is refused", path, strerror(errno));
	}
	if (file >= 0)
		close(file);
}

static void look_if_due(void)
{
	pthread_mutex_lock(&lock);
	uint64_t now = now_ns();
	if (!fixed && (int64_t)(now - atomic_load(&looked)) >= look_every) {
		look();
		atomic_store(&looked, now);
	}
	pthread_mutex_unlock(&lock);
}

struct plan *control_plan(uint64_t now)
{
	if ((int64_t)(now - atomic_load_explicit(&looked, memory_order_acquire)) >= look_every)
		look_if_due();
	return atomic_load_explicit(&current, memory_order_acquire);
}

void control_configure(const char *new_path, bool refuse)
{
	pthread_mutex_lock(&lock);
	if (path == NULL || new_path == NULL || strcmp(path, new_path) != 0) {
		free(path);
		path = new_path == NULL ? NULL : strdup(new_path);
		was_there = false;
	}
	fixed = refuse || (new_path != NULL && path == NULL);
	if (fixed) {
		atomic_store(&current, &refusing);
		was_there = false;
	} else {
		look();
	}
	pthread_mutex_unlock(&lock);
}
