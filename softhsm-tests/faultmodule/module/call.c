/* A call on its way through the module, and what the rules do to it. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <time.h>

#include "fault.h"

uint64_t now_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void sleep_until(uint64_t time)
{
	/* The kernel rounds a sleep up by 50 us otherwise. It stays so for the thread: asking for it
	 * anew would cost every call two system calls. */
	static _Thread_local bool precise;
	if (!precise)
		precise = prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL) == 0;

	struct timespec at = {(time_t)(time / 1000000000), (long)(time % 1000000000)};
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR)
		;
}

void complain(const char *format, ...)
{
	char text[1024];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	fprintf(stderr, "faultmodule: %s\n", text);
}

static void crash(void)
{
	/* Not raise: a fault inside of the module is what has to be survived. Hidden from the compiler,
	 * which would make a trap of it. */
	volatile uintptr_t nowhere = 8;
	*(volatile int *)nowhere = 0;
}

static void hang(enum function function, bool forever)
{
	for (;;) {
		uint64_t now = now_ns();
		if (!forever && !control_plan(now)->hangs[function])
			return;
		sleep_until(now + 1000000);
	}
}

static void perform(struct call *call, enum phase phase)
{
	struct rule **due = call->due[phase];
	if (due[CRASH] != NULL)
		crash();
	if (due[HANG] != NULL)
		hang(call->function, due[HANG]->value);
	if (due[ERROR] != NULL) {
		call->answered = true;
		call->rv = due[ERROR]->value;
	}
}

void call_begin(struct call *call, enum function function)
{
	uint64_t now = now_ns();
	shared_entered(function);
	*call = (struct call){.function = function, .plan = control_plan(now), .rv = CKR_OK};
	struct plan *plan = call->plan;
	if (plan->malformed) {
		call->answered = true;
		call->rv = CKR_ARGUMENTS_BAD;
		return;
	}
	for (unsigned i = 0; i < plan->applying[function]; i++) {
		struct rule *rule = &plan->rules[plan->applies[function][i]];
		uint64_t seen = atomic_fetch_add(&rule->seen, 1);
		if (seen >= rule->after && seen - rule->after < rule->count)
			call->due[rule->phase][rule->action] = rule;
	}
	/* The slot is taken before the real module is called, and that does its work while the slot's
	 * time runs, or even before: the latency is all that the caller waits for. */
	struct rule *latency = call->due[BEFORE][LATENCY];
	if (latency != NULL)
		call->until = shared_reserve(now, latency->value, plan->token.parallel);
	perform(call, BEFORE);
}

bool call_forwards(struct call *call, CK_RV refusal)
{
	if (call->answered)
		return false;
	call->rv = refusal;
	call->forwarded = refusal == CKR_OK;
	return call->forwarded;
}

CK_RV call_end(struct call *call)
{
	if (call->forwarded)
		perform(call, AFTER);
	if (call->until != 0)
		sleep_until(call->until);
	shared_returned(call->function);
	return call->rv;
}
