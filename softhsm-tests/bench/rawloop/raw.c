/* The loop that everything is compared with: C_EncryptInit+C_Encrypt and C_DecryptInit+C_Decrypt
 * of a 32-byte data key under AES-256-GCM with an AAD of 180 bytes, in one thread of one process,
 * on a token object and on a session copy of it.
 *
 *   raw MODULE MILLISECONDS     PIN from the environment, token: the only one that is initialised
 *
 * prints operations per second, a line each: NAME RATE. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CK_PTR *
#define CK_DECLARE_FUNCTION(returnType, name) returnType name
#define CK_DECLARE_FUNCTION_POINTER(returnType, name) returnType(CK_PTR name)
#define CK_CALLBACK_FUNCTION(returnType, name) returnType(CK_PTR name)
#ifndef NULL_PTR
#define NULL_PTR 0
#endif
#include "pkcs11.h"

static CK_FUNCTION_LIST_PTR p11;

static void must(CK_RV rv, const char *what)
{
	if (rv != CKR_OK) {
		fprintf(stderr, "raw: %s: 0x%lx\n", what, rv);
		exit(1);
	}
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static CK_SESSION_HANDLE open_token(void)
{
	CK_SLOT_ID slots[16];
	CK_ULONG n = 16;
	CK_SESSION_HANDLE s;
	char *pin = getenv("PIN");

	must(p11->C_GetSlotList(CK_TRUE, slots, &n), "C_GetSlotList");
	for (CK_ULONG i = 0; i < n; i++) {
		CK_TOKEN_INFO info;
		must(p11->C_GetTokenInfo(slots[i], &info), "C_GetTokenInfo");
		if (!(info.flags & CKF_TOKEN_INITIALIZED))
			continue;
		must(p11->C_OpenSession(slots[i], CKF_SERIAL_SESSION | CKF_RW_SESSION, 0, 0, &s), "C_OpenSession");
		if (!pin)
			must(CKR_PIN_INVALID, "PIN is not set");
		must(p11->C_Login(s, CKU_USER, (CK_UTF8CHAR_PTR)pin, strlen(pin)), "C_Login");
		return s;
	}
	must(CKR_TOKEN_NOT_PRESENT, "find a token");
	return 0;
}

static CK_OBJECT_HANDLE generate(CK_SESSION_HANDLE s)
{
	CK_BBOOL yes = CK_TRUE, no = CK_FALSE;
	CK_ULONG len = 32;
	CK_MECHANISM m = {CKM_AES_KEY_GEN, 0, 0};
	CK_ATTRIBUTE t[] = {
		{CKA_TOKEN, &yes, 1}, {CKA_PRIVATE, &yes, 1}, {CKA_SENSITIVE, &yes, 1}, {CKA_EXTRACTABLE, &no, 1},
		{CKA_ENCRYPT, &yes, 1}, {CKA_DECRYPT, &yes, 1}, {CKA_VALUE_LEN, &len, sizeof len},
		{CKA_LABEL, "raw loop", 8},
	};
	CK_OBJECT_HANDLE key;
	must(p11->C_GenerateKey(s, &m, t, sizeof t / sizeof *t, &key), "C_GenerateKey");
	return key;
}

static void measure(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE key, const char *name, double seconds)
{
	CK_BYTE iv[12] = {1}, aad[180] = {2}, plain[32] = {3}, sealed[48], out[48];
	CK_GCM_PARAMS gcm;
	CK_MECHANISM m = {CKM_AES_GCM, &gcm, sizeof gcm};
	CK_ULONG n;

	memset(&gcm, 0, sizeof gcm);
	gcm.pIv = iv;
	gcm.ulIvLen = sizeof iv;
	gcm.ulIvBits = 8 * sizeof iv;
	gcm.pAAD = aad;
	gcm.ulAADLen = sizeof aad;
	gcm.ulTagBits = 128;
	for (int decrypt = 0; decrypt < 2; decrypt++) {
		double from = now(), to = from;
		long count = 0;
		while ((to = now()) < from + seconds) {
			for (int i = 0; i < 100; i++, count++) {
				if (decrypt) {
					n = sizeof out;
					must(p11->C_DecryptInit(s, &m, key), "C_DecryptInit");
					must(p11->C_Decrypt(s, sealed, sizeof sealed, out, &n), "C_Decrypt");
				} else {
					n = sizeof sealed;
					must(p11->C_EncryptInit(s, &m, key), "C_EncryptInit");
					must(p11->C_Encrypt(s, plain, sizeof plain, sealed, &n), "C_Encrypt");
				}
			}
		}
		printf("%s-%s %.0f\n", name, decrypt ? "decrypt" : "encrypt", count / (to - from));
	}
}

int main(int argc, char **argv)
{
	CK_RV (*list)(CK_FUNCTION_LIST_PTR_PTR);
	CK_BBOOL no = CK_FALSE;
	CK_ATTRIBUTE copy[] = {{CKA_TOKEN, &no, 1}};
	CK_OBJECT_HANDLE key, session_key;
	CK_SESSION_HANDLE s;
	void *module;

	if (argc != 3 || !(module = dlopen(argv[1], RTLD_NOW)) || !(*(void **)&list = dlsym(module, "C_GetFunctionList"))) {
		fprintf(stderr, "usage: raw MODULE MILLISECONDS\n");
		return 1;
	}
	must(list(&p11), "C_GetFunctionList");
	must(p11->C_Initialize(0), "C_Initialize");
	s = open_token();
	key = generate(s);
	must(p11->C_CopyObject(s, key, copy, 1, &session_key), "C_CopyObject");
	measure(s, key, "token", atof(argv[2]) / 1000);
	measure(s, session_key, "copy", atof(argv[2]) / 1000);
	must(p11->C_DestroyObject(s, key), "C_DestroyObject");
	return 0;
}
