/*
 * A PKCS#11 module that forwards to a real one and adds the faults that a control file names.
 *
 * Environment, read at every C_GetFunctionList and C_Initialize:
 *
 *   KEKD_FAULT_MODULE    the real module, /usr/lib/softhsm/libsofthsm2.so by default
 *   KEKD_FAULT_CONTROL   the control file; without one there are no faults
 *   KEKD_FAULT_COUNTERS  a file for counters, shared by all processes that name it
 *
 * The control file has one rule a line; `#` starts a comment. It is looked at again when a call
 * comes a millisecond or more after the last look, and then every count starts anew. A missing
 * file is no fault. A malformed one is told on stderr, and every call fails with
 * CKR_ARGUMENTS_BAD until it is mended; so does everything if the environment is wrong.
 *
 *   FUNCTION|* ACTION [after=N] [count=N] [when=before|after]
 *
 *     error=CKR_NAME|0xHEX   answer with this
 *     latency=Nus            answer no sooner than N microseconds after the call began
 *     hang                   do not return while the control file has a hang for the function
 *     hang=forever           do not return
 *     crash                  SIGSEGV
 *
 *     after=N                let N calls pass first
 *     count=N                then apply to N calls, not to all
 *     when=before            (default) the real module has not been called
 *     when=after             it has been, but the caller is not told
 *
 *   token FACT...
 *
 *     parallel=N             calls with a latency wait for one of N slots
 *     iv=init|encrypt        CKM_AES_GCM encrypts under an IV of its own, and writes it to the
 *                            caller's pIv in C_EncryptInit, or not before C_Encrypt
 *     without=CKM_NAME|0xHEX this mechanism is neither listed nor accepted
 *     flags=CKF_NAME         set in C_GetTokenInfo
 *     free_private=N free_public=N total_private=N total_public=N
 *                            bytes of memory in C_GetTokenInfo
 *     objects=N              no token object is made when there are N: CKR_DEVICE_MEMORY
 *     vanished               no slot is listed, CKR_TOKEN_NOT_PRESENT for what takes a slot's ID
 *
 * Each rule counts by itself. Where two of one kind apply to a call, the later line does.
 * A call that only asks for the length of its output, the buffer being NULL, is no operation:
 * it meets no rule and no counter.
 */
#ifndef FAULT_H
#define FAULT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pkcs11go.h"

enum function {
#define CK_PKCS11_FUNCTION_INFO(name) F_##name,
#include "pkcs11f.h"
#undef CK_PKCS11_FUNCTION_INFO
	FUNCTIONS
};

enum { MAX_RULES = 64, MAX_WITHOUT = 16, MAX_PARALLEL = 256, MEMORY_FACTS = 4 };

/* A rule's action may come before the real module is called, or after. */
enum phase { BEFORE, AFTER, PHASES };
enum action { LATENCY, HANG, CRASH, ERROR, ACTIONS };

struct rule {
	enum action action;
	enum phase phase;
	uint64_t value; /* LATENCY: nanoseconds. HANG: for ever. ERROR: the return code */
	uint64_t after, count;
	_Atomic uint64_t seen;
};

enum iv { IV_OF_CALLER, IV_AT_INIT, IV_AT_ENCRYPT };

struct token {
	bool vanished;
	enum iv iv;
	unsigned parallel; /* 0: no limit */
	bool limited;
	uint64_t objects; /* if limited */
	CK_FLAGS flags;
	bool has_memory[MEMORY_FACTS];
	CK_ULONG memory[MEMORY_FACTS];
	unsigned without_count;
	CK_MECHANISM_TYPE without[MAX_WITHOUT];
};

/* A plan is one reading of the control file. Only the rules' counts change in it. */
struct plan {
	struct plan *previous;
	bool malformed;
	bool hangs[FUNCTIONS];
	struct token token;
	unsigned rule_count;
	struct rule rules[MAX_RULES];
	unsigned char applying[FUNCTIONS]; /* how many of these there are: */
	unsigned char applies[FUNCTIONS][MAX_RULES];
};

/* plan_parse fills an empty plan from the text, which it cuts into words. It returns NULL, or
 * what is wrong, with the number of the line. */
const char *plan_parse(struct plan *plan, char *text, unsigned *line);

/* Where C_GetTokenInfo has what the memory facts change. */
struct memory_fact {
	const char *key;
	size_t offset;
};
extern const struct memory_fact memory_facts[MEMORY_FACTS];

/* The names that the PKCS#11 header defines; the last has no name. */
struct name {
	const char *name;
	CK_ULONG value;
};
extern const struct name result_names[], mechanism_names[];
extern const char *const function_names[FUNCTIONS];

/* control_configure takes over the environment's control file, or refuses every call. */
void control_configure(const char *path, bool refuse);
/* control_plan is the plan in force at a time. */
struct plan *control_plan(uint64_t now);

/* shared_open maps the counters' file, or goes without if path is NULL. */
bool shared_open(const char *path);
void shared_entered(enum function function);
void shared_returned(enum function function);
/* shared_reserve takes the slot that is free first, and says until when it is taken. */
uint64_t shared_reserve(uint64_t now, uint64_t latency, unsigned parallel);

/* A call on its way through the module. */
struct call {
	enum function function;
	struct plan *plan;
	CK_RV rv;
	bool answered, forwarded;
	uint64_t until;
	struct rule *due[PHASES][ACTIONS];
};
void call_begin(struct call *call, enum function function);
/* call_forwards says whether the real module is to be called: not if a rule has answered
 * already, nor if there is a refusal. */
bool call_forwards(struct call *call, CK_RV refusal);
CK_RV call_end(struct call *call);

/* What the rules about the token do. */
extern CK_FUNCTION_LIST_PTR real;
CK_RV iv_init(enum iv at, CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key);
void iv_encrypted(CK_SESSION_HANDLE session, CK_RV rv);
CK_RV room_enter(const struct token *token, CK_SESSION_HANDLE session);
void room_leave(void);

uint64_t now_ns(void);
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
