/* The module's face: the table of PKCS#11 v2.40's 68 functions, each wrapped; see fault.h. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "fault.h"

CK_FUNCTION_LIST_PTR real; /* NULL: every call is refused before it would be used */

/* Reads the environment; fails by refusing every call. */
static void configure(void)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	static char *loaded;

	pthread_mutex_lock(&lock);
	const char *path = getenv("KEKD_FAULT_MODULE");
	if (path == NULL || *path == '\0')
		path = "/usr/lib/softhsm/libsofthsm2.so";
	bool ok = true;
	if (real == NULL) {
		void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
		CK_C_GetFunctionList get = NULL;
		if (module != NULL)
			*(void **)&get = dlsym(module, "C_GetFunctionList");
		ok = get != NULL && get(&real) == CKR_OK && (loaded = strdup(path)) != NULL;
		if (!ok) {
			complain("%s: cannot be loaded as a PKCS#11 module: every call is refused", path);
			real = NULL;
		}
	} else if (strcmp(path, loaded) != 0) {
		complain("%s: %s is loaded already: every call is refused", path, loaded);
		ok = false;
	}
	ok = ok && shared_open(getenv("KEKD_FAULT_COUNTERS"));
	control_configure(getenv("KEKD_FAULT_CONTROL"), !ok);
	pthread_mutex_unlock(&lock);
}

/* Refusals of single calls, by the rules about the token. */

static CK_RV present(const struct call *call)
{
	return call->plan->token.vanished ? CKR_TOKEN_NOT_PRESENT : CKR_OK;
}

static CK_RV has(const struct call *call, CK_MECHANISM_TYPE mechanism)
{
	const struct token *token = &call->plan->token;
	for (unsigned i = 0; i < token->without_count; i++) {
		if (token->without[i] == mechanism)
			return CKR_MECHANISM_INVALID;
	}
	return CKR_OK;
}

static CK_RV accepts(const struct call *call, CK_MECHANISM_PTR mechanism)
{
	return mechanism == NULL ? CKR_OK : has(call, mechanism->mechanism);
}

static bool on_token(CK_ATTRIBUTE_PTR template, CK_ULONG n)
{
	for (CK_ULONG i = 0; template != NULL && i < n; i++) {
		if (template[i].type == CKA_TOKEN && template[i].pValue != NULL && template[i].ulValueLen == sizeof(CK_BBOOL))
			return *(CK_BBOOL *)template[i].pValue != CK_FALSE;
	}
	return false;
}

/* The wrappers. What is unlike the others has its fault_ function below. */

#define WRAP(name, refusal, parameters, arguments)                                                 \
	static CK_RV fault_##name parameters                                                       \
	{                                                                                          \
		struct call call;                                                                  \
		call_begin(&call, F_##name);                                                       \
		if (call_forwards(&call, refusal))                                                 \
			call.rv = real->name arguments;                                            \
		return call_end(&call);                                                            \
	}

#define PLAIN(name, parameters, arguments) WRAP(name, CKR_OK, parameters, arguments)
#define SLOT(name, parameters, arguments) WRAP(name, present(&call), parameters, arguments)
#define MECHANISM(name, parameters, arguments) WRAP(name, accepts(&call, m), parameters, arguments)

/* The caller may ask for the output's length, by a NULL for its buffer. */
#define OUTPUT(name, refusal, out, parameters, arguments, then)                                    \
	static CK_RV fault_##name parameters                                                       \
	{                                                                                          \
		if (out == NULL)                                                                   \
			return control_plan(now_ns())->malformed ? CKR_ARGUMENTS_BAD : real->name arguments; \
		struct call call;                                                                  \
		call_begin(&call, F_##name);                                                       \
		if (call_forwards(&call, refusal)) {                                               \
			call.rv = real->name arguments;                                            \
			then;                                                                      \
		}                                                                                  \
		return call_end(&call);                                                            \
	}

/* The caller may ask for a new object on the token. */
#define CREATES(name, refusal, asks, parameters, arguments)                                        \
	static CK_RV fault_##name parameters                                                       \
	{                                                                                          \
		struct call call;                                                                  \
		call_begin(&call, F_##name);                                                       \
		if (call_forwards(&call, refusal)) {                                               \
			bool limited = call.plan->token.limited && (asks);                         \
			if (limited)                                                               \
				call.rv = room_enter(&call.plan->token, s);                        \
			if (call.rv == CKR_OK)                                                     \
				call.rv = real->name arguments;                                    \
			if (limited)                                                               \
				room_leave();                                                      \
		}                                                                                  \
		return call_end(&call);                                                            \
	}

typedef CK_SESSION_HANDLE session;
typedef CK_OBJECT_HANDLE object;
typedef CK_BYTE_PTR bytes;
typedef CK_ULONG len;
typedef CK_ULONG_PTR lenp;
typedef CK_MECHANISM_PTR mech;
typedef CK_ATTRIBUTE_PTR attrs;
typedef CK_OBJECT_HANDLE_PTR objectp;

static CK_RV fault_C_Initialize(CK_VOID_PTR arguments)
{
	struct call call;
	configure();
	call_begin(&call, F_C_Initialize);
	if (call_forwards(&call, CKR_OK))
		call.rv = real->C_Initialize(arguments);
	return call_end(&call);
}

PLAIN(C_Finalize, (CK_VOID_PTR reserved), (reserved))
PLAIN(C_GetInfo, (CK_INFO_PTR info), (info))

static CK_RV fault_C_GetSlotList(CK_BBOOL with_token, CK_SLOT_ID_PTR slots, lenp n)
{
	struct call call;
	call_begin(&call, F_C_GetSlotList);
	if (call_forwards(&call, CKR_OK)) {
		if (call.plan->token.vanished && n != NULL)
			*n = 0;
		else
			call.rv = real->C_GetSlotList(with_token, slots, n);
	}
	return call_end(&call);
}

PLAIN(C_GetSlotInfo, (CK_SLOT_ID slot, CK_SLOT_INFO_PTR info), (slot, info))

static CK_RV fault_C_GetTokenInfo(CK_SLOT_ID slot, CK_TOKEN_INFO_PTR info)
{
	struct call call;
	call_begin(&call, F_C_GetTokenInfo);
	if (call_forwards(&call, present(&call)))
		call.rv = real->C_GetTokenInfo(slot, info);
	if (call.forwarded && call.rv == CKR_OK) {
		const struct token *token = &call.plan->token;
		info->flags |= token->flags;
		for (int i = 0; i < MEMORY_FACTS; i++) {
			if (token->has_memory[i])
				memcpy((char *)info + memory_facts[i].offset, &token->memory[i], sizeof(CK_ULONG));
		}
	}
	return call_end(&call);
}

/* The real list without what the token is said to be without. */
static CK_RV list_mechanisms(const struct call *call, CK_SLOT_ID slot, CK_MECHANISM_TYPE_PTR list, lenp n)
{
	CK_ULONG all = 0, kept = 0;
	CK_RV rv = n == NULL ? CKR_ARGUMENTS_BAD : real->C_GetMechanismList(slot, NULL, &all);
	if (rv != CKR_OK)
		return rv;
	CK_MECHANISM_TYPE_PTR mechanisms = calloc(all, sizeof *mechanisms);
	if (mechanisms == NULL)
		return CKR_HOST_MEMORY;
	rv = real->C_GetMechanismList(slot, mechanisms, &all);
	for (CK_ULONG i = 0; rv == CKR_OK && i < all; i++) {
		if (has(call, mechanisms[i]) == CKR_OK)
			mechanisms[kept++] = mechanisms[i];
	}
	if (rv == CKR_OK && list != NULL) {
		if (*n < kept)
			rv = CKR_BUFFER_TOO_SMALL;
		else
			memcpy(list, mechanisms, kept * sizeof *list);
	}
	*n = kept;
	free(mechanisms);
	return rv;
}

static CK_RV fault_C_GetMechanismList(CK_SLOT_ID slot, CK_MECHANISM_TYPE_PTR list, lenp n)
{
	struct call call;
	call_begin(&call, F_C_GetMechanismList);
	if (call_forwards(&call, present(&call))) {
		if (call.plan->token.without_count > 0)
			call.rv = list_mechanisms(&call, slot, list, n);
		else
			call.rv = real->C_GetMechanismList(slot, list, n);
	}
	return call_end(&call);
}

WRAP(C_GetMechanismInfo, present(&call) ? present(&call) : has(&call, type),
     (CK_SLOT_ID slot, CK_MECHANISM_TYPE type, CK_MECHANISM_INFO_PTR info), (slot, type, info))
SLOT(C_InitToken, (CK_SLOT_ID slot, CK_UTF8CHAR_PTR pin, len n, CK_UTF8CHAR_PTR label), (slot, pin, n, label))
PLAIN(C_InitPIN, (session s, CK_UTF8CHAR_PTR pin, len n), (s, pin, n))
PLAIN(C_SetPIN, (session s, CK_UTF8CHAR_PTR old, len old_n, CK_UTF8CHAR_PTR new, len new_n), (s, old, old_n, new, new_n))

SLOT(C_OpenSession, (CK_SLOT_ID slot, CK_FLAGS flags, CK_VOID_PTR app, CK_NOTIFY notify, CK_SESSION_HANDLE_PTR s),
     (slot, flags, app, notify, s))
PLAIN(C_CloseSession, (session s), (s))
PLAIN(C_CloseAllSessions, (CK_SLOT_ID slot), (slot))
PLAIN(C_GetSessionInfo, (session s, CK_SESSION_INFO_PTR info), (s, info))
OUTPUT(C_GetOperationState, CKR_OK, out, (session s, bytes out, lenp out_n), (s, out, out_n), )
PLAIN(C_SetOperationState, (session s, bytes in, len n, object encryption, object authentication),
      (s, in, n, encryption, authentication))
PLAIN(C_Login, (session s, CK_USER_TYPE user, CK_UTF8CHAR_PTR pin, len n), (s, user, pin, n))
PLAIN(C_Logout, (session s), (s))

CREATES(C_CreateObject, CKR_OK, on_token(t, n), (session s, attrs t, len n, objectp o), (s, t, n, o))
CREATES(C_CopyObject, CKR_OK, on_token(t, n), (session s, object from, attrs t, len n, objectp o), (s, from, t, n, o))
PLAIN(C_DestroyObject, (session s, object o), (s, o))
PLAIN(C_GetObjectSize, (session s, object o, lenp size), (s, o, size))
PLAIN(C_GetAttributeValue, (session s, object o, attrs t, len n), (s, o, t, n))
PLAIN(C_SetAttributeValue, (session s, object o, attrs t, len n), (s, o, t, n))
PLAIN(C_FindObjectsInit, (session s, attrs t, len n), (s, t, n))
PLAIN(C_FindObjects, (session s, objectp o, len max, lenp n), (s, o, max, n))
PLAIN(C_FindObjectsFinal, (session s), (s))

static CK_RV fault_C_EncryptInit(session s, mech m, object key)
{
	struct call call;
	call_begin(&call, F_C_EncryptInit);
	if (call_forwards(&call, accepts(&call, m)))
		call.rv = iv_init(call.plan->token.iv, s, m, key);
	return call_end(&call);
}

OUTPUT(C_Encrypt, CKR_OK, out, (session s, bytes in, len n, bytes out, lenp out_n), (s, in, n, out, out_n),
       iv_encrypted(s, call.rv))
OUTPUT(C_EncryptUpdate, CKR_OK, out, (session s, bytes in, len n, bytes out, lenp out_n), (s, in, n, out, out_n), )
OUTPUT(C_EncryptFinal, CKR_OK, out, (session s, bytes out, lenp out_n), (s, out, out_n), iv_encrypted(s, call.rv))
MECHANISM(C_DecryptInit, (session s, mech m, object key), (s, m, key))
OUTPUT(C_Decrypt, CKR_OK, out, (session s, bytes in, len n, bytes out, lenp out_n), (s, in, n, out, out_n), )
OUTPUT(C_DecryptUpdate, CKR_OK, out, (session s, bytes in, len n, bytes out, lenp out_n), (s, in, n, out, out_n), )
OUTPUT(C_DecryptFinal, CKR_OK, out, (session s, bytes out, lenp out_n), (s, out, out_n), )

MECHANISM(C_DigestInit, (session s, mech m), (s, m))
OUTPUT(C_Digest, CKR_OK, out, (session s, bytes in, len n, bytes out, lenp out_n), (s, in, n, out, out_n), )
PLAIN(C_DigestUpdate, (session s, bytes in, len n), (s, in, n))
PLAIN(C_DigestKey, (session s, object key), (s, key))
OUTPUT(C_DigestFinal, CKR_OK, out, (session s, bytes out, lenp out_n), (s, out, out_n), )

MECHANISM(C_SignInit, (session s, mech m, object key), (s, m, key))
OUTPUT(C_Sign, CKR_OK, out, (session s, bytes in, len n, bytes out, lenp out_n), (s, in, n, out, out_n), )
PLAIN(C_SignUpdate, (session s, bytes in, len n), (s, in, n))
OUTPUT(C_SignFinal, CKR_OK, out, (session s, bytes out, lenp out_n), (s, out, out_n), )
MECHANISM(C_SignRecoverInit, (session s, mech m, object key), (s, m, key))
OUTPUT(C_SignRecover, CKR_OK, out, (session s, bytes in, len n, bytes out, lenp out_n), (s, in, n, out, out_n), )

MECHANISM(C_VerifyInit, (session s, mech m, object key), (s, m, key))
PLAIN(C_Verify, (session s, bytes in, len n, bytes signature, len signature_n), (s, in, n, signature, signature_n))
PLAIN(C_VerifyUpdate, (session s, bytes in, len n), (s, in, n))
PLAIN(C_VerifyFinal, (session s, bytes signature, len n), (s, signature, n))
MECHANISM(C_VerifyRecoverInit, (session s, mech m, object key), (s, m, key))
OUTPUT(C_VerifyRecover, CKR_OK, out, (session s, bytes in, len n, bytes out, lenp out_n), (s, in, n, out, out_n), )

OUTPUT(C_DigestEncryptUpdate, CKR_OK, out, (session s, bytes in, len n, bytes out, lenp out_n), (s, in, n, out, out_n), )
OUTPUT(C_DecryptDigestUpdate, CKR_OK, out, (session s, bytes in, len n, bytes out, lenp out_n), (s, in, n, out, out_n), )
OUTPUT(C_SignEncryptUpdate, CKR_OK, out, (session s, bytes in, len n, bytes out, lenp out_n), (s, in, n, out, out_n), )
OUTPUT(C_DecryptVerifyUpdate, CKR_OK, out, (session s, bytes in, len n, bytes out, lenp out_n), (s, in, n, out, out_n), )

CREATES(C_GenerateKey, accepts(&call, m), on_token(t, n), (session s, mech m, attrs t, len n, objectp o), (s, m, t, n, o))
CREATES(C_GenerateKeyPair, accepts(&call, m), on_token(pub, pub_n) || on_token(priv, priv_n),
        (session s, mech m, attrs pub, len pub_n, attrs priv, len priv_n, objectp pub_o, objectp priv_o),
        (s, m, pub, pub_n, priv, priv_n, pub_o, priv_o))
OUTPUT(C_WrapKey, accepts(&call, m), out, (session s, mech m, object with, object key, bytes out, lenp out_n),
       (s, m, with, key, out, out_n), )
CREATES(C_UnwrapKey, accepts(&call, m), on_token(t, n),
        (session s, mech m, object with, bytes in, len in_n, attrs t, len n, objectp o), (s, m, with, in, in_n, t, n, o))
CREATES(C_DeriveKey, accepts(&call, m), on_token(t, n), (session s, mech m, object base, attrs t, len n, objectp o),
        (s, m, base, t, n, o))

PLAIN(C_SeedRandom, (session s, bytes in, len n), (s, in, n))
PLAIN(C_GenerateRandom, (session s, bytes out, len n), (s, out, n))
PLAIN(C_GetFunctionStatus, (session s), (s))
PLAIN(C_CancelFunction, (session s), (s))
PLAIN(C_WaitForSlotEvent, (CK_FLAGS flags, CK_SLOT_ID_PTR slot, CK_VOID_PTR reserved), (flags, slot, reserved))

/* The only symbol that is visible. It always succeeds: miekg/pkcs11 does not look at the result. */
__attribute__((visibility("default"))) CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list);
#define fault_C_GetFunctionList C_GetFunctionList

static CK_FUNCTION_LIST table = {
	.version = {2, 40},
#define CK_PKCS11_FUNCTION_INFO(name) .name = fault_##name,
#include "pkcs11f.h"
#undef CK_PKCS11_FUNCTION_INFO
};

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list)
{
	if (list == NULL)
		return CKR_ARGUMENTS_BAD;
	configure();
	*list = &table;
	return CKR_OK;
}
