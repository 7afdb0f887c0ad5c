// The part of PKCS#11 v2.40 that the hot path and listings call: one function that runs a batch of data
// key operations in one crossing from Go, and one that reads an object in one call.
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long ck_ulong;

typedef struct {
	ck_ulong mechanism;
	void *param;
	ck_ulong param_len;
} ck_mechanism;

typedef struct {
	uint8_t *iv;
	ck_ulong iv_len, iv_bits;
	uint8_t *aad;
	ck_ulong aad_len, tag_bits;
} ck_gcm_params;

typedef struct {
	uint8_t iv[16];
	uint8_t *data;
	ck_ulong len;
} ck_cbc_encrypt_data_params;

// CK_FUNCTION_LIST: a version, then 68 pointers in the order of the standard.
typedef struct {
	uint8_t version[2];
	void *fn[68];
} ck_functions;

typedef struct {
	ck_ulong type;
	void *value;
	ck_ulong len;
} ck_attribute;

enum { FN_GET_ATTRIBUTE_VALUE = 24, FN_ENCRYPT_INIT = 29, FN_ENCRYPT = 30, FN_DECRYPT_INIT = 33, FN_DECRYPT = 34, FN_GENERATE_RANDOM = 64 };

typedef ck_ulong (*ck_init)(ck_ulong session, ck_mechanism *mechanism, ck_ulong key);
typedef ck_ulong (*ck_crypt)(ck_ulong session, uint8_t *in, ck_ulong in_len, uint8_t *out, ck_ulong *out_len);
typedef ck_ulong (*ck_get)(ck_ulong session, ck_ulong object, ck_attribute *attributes, ck_ulong n);
typedef ck_ulong (*ck_random)(ck_ulong session, uint8_t *out, ck_ulong out_len);

enum { CKM_AES_GCM_VALUE = 0x1087 };

enum step_kind {
	STEP_GIVEN,  // out is there already
	STEP_RANDOM, // out_len bytes from the token
	STEP_OPEN,   // in -> out
	STEP_SEAL,   // out of the step `source` -> out
};

// A step that never ran because its source failed.
#define STEP_SKIPPED (~(ck_ulong)0)

typedef struct {
	int32_t kind;
	int32_t source;
	int32_t at_init; // 1: rv is that of the Init call
	ck_ulong rv;
	ck_ulong key;
	uint8_t *iv;
	ck_ulong iv_len;
	uint8_t *aad;
	ck_ulong aad_len;
	uint8_t *in;
	ck_ulong in_len;
	uint8_t *out;
	ck_ulong out_len; // before: room; after: length
} step;

static ck_functions *load_functions(const char *path) {
	void *lib = dlopen(path, RTLD_LAZY);
	if (lib == NULL)
		return NULL;
	// Never closed: a module that is unloaded with threads or exit handlers left is a crash.
	ck_ulong (*get)(ck_functions **) = (ck_ulong(*)(ck_functions **))dlsym(lib, "C_GetFunctionList");
	ck_functions *list = NULL;
	if (get == NULL || get(&list) != 0)
		return NULL;
	return list;
}

enum { READ_LIMIT = 32 }; // attributes

// Reads n attributes of an object, each into room bytes of out, and their lengths into lens. Unlike a
// call that asks for the lengths first it is one, which is half as many of SoftHSM's looks at the
// object's file.
static ck_ulong read_object(ck_functions *f, ck_ulong session, ck_ulong object, const ck_ulong *types, ck_ulong *lens, ck_ulong n, uint8_t *out, ck_ulong room) {
	ck_attribute a[READ_LIMIT];
	if (n > READ_LIMIT)
		abort();
	for (ck_ulong i = 0; i < n; i++)
		a[i] = (ck_attribute){types[i], out + i * room, room};
	ck_ulong rv = ((ck_get)f->fn[FN_GET_ATTRIBUTE_VALUE])(session, object, a, n);
	for (ck_ulong i = 0; i < n; i++)
		lens[i] = a[i].len;
	return rv;
}

static void crypt_step(ck_functions *f, ck_ulong session, step *s, uint8_t *in, ck_ulong in_len, int init, int run) {
	ck_gcm_params params = {s->iv, s->iv_len, s->iv_len * 8, s->aad, s->aad_len, 128};
	ck_mechanism mechanism = {CKM_AES_GCM_VALUE, &params, sizeof params};

	s->rv = ((ck_init)f->fn[init])(session, &mechanism, s->key);
	if (s->rv != 0) {
		s->at_init = 1;
		return;
	}
	s->rv = ((ck_crypt)f->fn[run])(session, in, in_len, s->out, &s->out_len);
	s->iv_len = params.iv_len; // a token that chooses the IV itself writes it back
}

static void run_steps(ck_functions *f, ck_ulong session, step *steps, int n) {
	for (int i = 0; i < n; i++) {
		step *s = &steps[i];
		switch (s->kind) {
		case STEP_GIVEN:
			break;
		case STEP_RANDOM:
			s->rv = ((ck_random)f->fn[FN_GENERATE_RANDOM])(session, s->out, s->out_len);
			break;
		case STEP_OPEN:
			crypt_step(f, session, s, s->in, s->in_len, FN_DECRYPT_INIT, FN_DECRYPT);
			break;
		case STEP_SEAL:
			if (steps[s->source].rv != 0)
				s->rv = STEP_SKIPPED;
			else
				crypt_step(f, session, s, steps[s->source].out, steps[s->source].out_len, FN_ENCRYPT_INIT, FN_ENCRYPT);
			break;
		}
	}
}
