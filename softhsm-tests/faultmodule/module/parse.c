/* The control file's grammar; fault.h describes it. */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fault.h"

static const char blanks[] = " \t\r";

const char *const function_names[FUNCTIONS] = {
#define CK_PKCS11_FUNCTION_INFO(name) #name,
#include "pkcs11f.h"
#undef CK_PKCS11_FUNCTION_INFO
};

const struct memory_fact memory_facts[MEMORY_FACTS] = {
	{"total_public", offsetof(CK_TOKEN_INFO, ulTotalPublicMemory)},
	{"free_public", offsetof(CK_TOKEN_INFO, ulFreePublicMemory)},
	{"total_private", offsetof(CK_TOKEN_INFO, ulTotalPrivateMemory)},
	{"free_private", offsetof(CK_TOKEN_INFO, ulFreePrivateMemory)},
};

#define NAME(value) {#value, value}
/* Only a token's flags: those of slots and sessions have the same bits. */
static const struct name token_flag_names[] = {
	NAME(CKF_WRITE_PROTECTED), NAME(CKF_LOGIN_REQUIRED),
	NAME(CKF_USER_PIN_INITIALIZED), NAME(CKF_PROTECTED_AUTHENTICATION_PATH),
	NAME(CKF_USER_PIN_COUNT_LOW), NAME(CKF_USER_PIN_FINAL_TRY),
	NAME(CKF_USER_PIN_LOCKED), NAME(CKF_USER_PIN_TO_BE_CHANGED),
	NAME(CKF_SO_PIN_COUNT_LOW), NAME(CKF_SO_PIN_FINAL_TRY),
	NAME(CKF_SO_PIN_LOCKED), NAME(CKF_SO_PIN_TO_BE_CHANGED),
	NAME(CKF_ERROR_STATE), {NULL, 0},
};

static bool parse_number(const char *text, const char *unit, uint64_t *number)
{
	if (text == NULL || !isdigit((unsigned char)text[0]))
		return false;
	char *end;
	errno = 0;
	*number = strtoull(text, &end, strncmp(text, "0x", 2) == 0 ? 16 : 10);
	return errno == 0 && strcmp(end, unit) == 0;
}

static bool parse_name(const char *text, const struct name *names, uint64_t *value)
{
	if (text == NULL)
		return false;
	for (; names->name != NULL; names++) {
		if (strcmp(text, names->name) == 0) {
			*value = names->value;
			return true;
		}
	}
	return strncmp(text, "0x", 2) == 0 && parse_number(text, "", value);
}

/* Cuts key=value in two; NULL if there is no value. */
static char *cut_value(char *word)
{
	char *equals = strchr(word, '=');
	if (equals == NULL)
		return NULL;
	*equals = '\0';
	return equals + 1;
}

static const char *parse_action(struct rule *rule, const char *key, const char *value)
{
	if (rule->action != ACTIONS)
		return "more than one action in a rule";
	if (strcmp(key, "error") == 0) {
		rule->action = ERROR;
		return parse_name(value, result_names, &rule->value) ? NULL : "no such return code";
	}
	if (strcmp(key, "latency") == 0) {
		rule->action = LATENCY;
		if (!parse_number(value, "us", &rule->value) || rule->value > 60000000)
			return "latency is a number of microseconds up to a minute, as in 1000us";
		rule->value *= 1000;
		return NULL;
	}
	if (strcmp(key, "hang") == 0) {
		rule->action = HANG;
		rule->value = value != NULL;
		return value == NULL || strcmp(value, "forever") == 0 ? NULL : "a hang has no value but forever";
	}
	if (strcmp(key, "crash") == 0) {
		rule->action = CRASH;
		return value == NULL ? NULL : "a crash has no value";
	}
	return "no such word in a rule";
}

static const char *parse_rule(struct plan *plan, const char *subject, char **rest)
{
	enum function only = 0;
	bool every = strcmp(subject, "*") == 0;
	while (!every && only < FUNCTIONS && strcmp(subject, function_names[only]) != 0)
		only++;
	if (only == FUNCTIONS)
		return "no such function";
	if (!every && only == F_C_GetFunctionList)
		return "C_GetFunctionList has no faults";
	if (plan->rule_count == MAX_RULES)
		return "too many rules";

	unsigned index = plan->rule_count++;
	struct rule *rule = &plan->rules[index];
	rule->action = ACTIONS;
	rule->count = UINT64_MAX;
	bool after = false, count = false, when = false;
	for (char *key; (key = strtok_r(NULL, blanks, rest)) != NULL;) {
		char *value = cut_value(key);
		const char *wrong = NULL;
		if (strcmp(key, "after") == 0) {
			if (after || !parse_number(value, "", &rule->after))
				wrong = "after is one number of calls";
			after = true;
		} else if (strcmp(key, "count") == 0) {
			if (count || !parse_number(value, "", &rule->count) || rule->count == 0)
				wrong = "count is one number of calls, at least 1";
			count = true;
		} else if (strcmp(key, "when") == 0) {
			bool late = value != NULL && strcmp(value, "after") == 0;
			if (when || value == NULL || (!late && strcmp(value, "before") != 0))
				wrong = "when is before or after";
			rule->phase = late ? AFTER : BEFORE;
			when = true;
		} else {
			wrong = parse_action(rule, key, value);
		}
		if (wrong != NULL)
			return wrong;
	}
	if (rule->action == ACTIONS)
		return "a rule without an action";
	if (rule->action == LATENCY && when)
		return "a latency has no when";

	for (enum function f = 0; f < FUNCTIONS; f++) {
		if (f == F_C_GetFunctionList || (!every && f != only))
			continue;
		plan->applies[f][plan->applying[f]++] = (unsigned char)index;
		plan->hangs[f] |= rule->action == HANG;
	}
	return NULL;
}

static const char *parse_fact(struct token *token, const char *key, const char *value)
{
	uint64_t number;
	if (strcmp(key, "vanished") == 0) {
		token->vanished = true;
		return value == NULL ? NULL : "vanished has no value";
	}
	if (strcmp(key, "iv") == 0) {
		if (value != NULL && strcmp(value, "init") == 0)
			token->iv = IV_AT_INIT;
		else if (value != NULL && strcmp(value, "encrypt") == 0)
			token->iv = IV_AT_ENCRYPT;
		else
			return "iv is init or encrypt";
		return NULL;
	}
	if (strcmp(key, "parallel") == 0) {
		if (!parse_number(value, "", &number) || number == 0 || number > MAX_PARALLEL)
			return "parallel is a number of calls from 1 to 256";
		token->parallel = (unsigned)number;
		return NULL;
	}
	if (strcmp(key, "objects") == 0) {
		token->limited = true;
		return parse_number(value, "", &token->objects) ? NULL : "objects is a number";
	}
	if (strcmp(key, "flags") == 0) {
		if (!parse_name(value, token_flag_names, &number))
			return "no such flag of a token";
		token->flags |= number;
		return NULL;
	}
	if (strcmp(key, "without") == 0) {
		if (token->without_count == MAX_WITHOUT)
			return "too many mechanisms";
		if (!parse_name(value, mechanism_names, &number))
			return "no such mechanism";
		token->without[token->without_count++] = number;
		return NULL;
	}
	for (int i = 0; i < MEMORY_FACTS; i++) {
		if (strcmp(key, memory_facts[i].key) == 0) {
			token->has_memory[i] = true;
			token->memory[i] = 0;
			if (!parse_number(value, "", &number))
				return "memory is a number of bytes";
			token->memory[i] = number;
			return NULL;
		}
	}
	return "no such fact of a token";
}

static const char *parse_line(struct plan *plan, char *text)
{
	char *rest, *comment = strchr(text, '#');
	if (comment != NULL)
		*comment = '\0';
	char *subject = strtok_r(text, blanks, &rest);
	if (subject == NULL)
		return NULL;
	if (strcmp(subject, "token") != 0)
		return parse_rule(plan, subject, &rest);

	char *key = strtok_r(NULL, blanks, &rest);
	if (key == NULL)
		return "token without a fact";
	for (; key != NULL; key = strtok_r(NULL, blanks, &rest)) {
		char *value = cut_value(key);
		const char *wrong = parse_fact(&plan->token, key, value);
		if (wrong != NULL)
			return wrong;
	}
	return NULL;
}

const char *plan_parse(struct plan *plan, char *text, unsigned *line)
{
	*line = 0;
	for (char *next; text != NULL; text = next) {
		next = strchr(text, '\n');
		if (next != NULL)
			*next++ = '\0';
		++*line;
		const char *wrong = parse_line(plan, text);
		if (wrong != NULL)
			return wrong;
	}
	/* The slots hold calls back by their latency alone. */
	if (plan->token.parallel > 0) {
		for (unsigned i = 0; i < plan->rule_count; i++) {
			if (plan->rules[i].action == LATENCY && plan->rules[i].value > 0)
				return NULL;
		}
		return "parallel without a latency holds nothing back";
	}
	return NULL;
}
