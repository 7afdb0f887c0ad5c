/*
 * Drives the module under a sanitizer.
 *
 *   drive parse   reads control files from stdin, separated by 0x1e, and prints a line for each:
 *                 "ok", or the number of the line and what is wrong with it
 *   drive run     makes a token and works on it from four threads while the control file changes
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "module/fault.h"

enum { THREADS = 4, CHANGES = 70 };

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list);
static CK_FUNCTION_LIST_PTR p11;
static CK_SLOT_ID slot;
static CK_OBJECT_HANDLE key;
static atomic_ulong opened, refused;
static atomic_bool done;

static void fail(const char *what, CK_RV rv)
{
	fprintf(stderr, "%s: 0x%lx\n", what, rv);
	_exit(1);
}

static void must(const char *what, CK_RV rv)
{
	if (rv != CKR_OK)
		fail(what, rv);
}

static int parse(void)
{
	char *text = NULL;
	size_t size = 0;
	while (getdelim(&text, &size, 0x1e, stdin) > 0) {
		text[strcspn(text, "\x1e")] = '\0';
		/* Of the exact size, so that reading past it shows. */
		char *exact = strdup(text);
		struct plan *plan = calloc(1, sizeof *plan);
		unsigned line;
		const char *wrong = plan_parse(plan, exact, &line);
		if (wrong == NULL)
			puts("ok");
		else
			printf("%u: %s\n", line, wrong);
		free(plan);
		free(exact);
	}
	free(text);
	return 0;
}

/* One encryption and its decryption; what came of it. */
static CK_RV round_trip(CK_SESSION_HANDLE s)
{
	CK_BYTE iv[12] = {1}, aad[4] = "aad", plain[32] = "data key", sealed[48], back[48];
	CK_GCM_PARAMS gcm = {iv, sizeof iv, 96, aad, sizeof aad, 128};
	CK_MECHANISM m = {CKM_AES_GCM, &gcm, sizeof gcm};
	CK_ULONG sealed_n = sizeof sealed, back_n = sizeof back;
	CK_RV rv = p11->C_EncryptInit(s, &m, key);
	if (rv == CKR_OK)
		rv = p11->C_Encrypt(s, plain, sizeof plain, sealed, &sealed_n);
	if (rv == CKR_OK)
		rv = p11->C_DecryptInit(s, &m, key);
	if (rv == CKR_OK)
		rv = p11->C_Decrypt(s, sealed, sealed_n, back, &back_n);
	if (rv == CKR_OK && (back_n != sizeof plain || memcmp(back, plain, sizeof plain) != 0))
		fail("another plaintext", 0);
	return rv;
}

static void *work(void *unused)
{
	CK_SESSION_HANDLE s = CK_INVALID_HANDLE;
	while (!done) {
		if (s == CK_INVALID_HANDLE && p11->C_OpenSession(slot, CKF_SERIAL_SESSION, NULL, NULL, &s) != CKR_OK) {
			refused++;
			continue;
		}
		CK_RV rv = round_trip(s);
		switch (rv) {
		case CKR_OK:
			opened++;
			continue;
		case CKR_ARGUMENTS_BAD:
		case CKR_DEVICE_ERROR:
		case CKR_OPERATION_ACTIVE:
			refused++;
			p11->C_CloseSession(s);
			s = CK_INVALID_HANDLE;
			continue;
		default:
			fail("round trip", rv);
		}
	}
	return unused;
}

static void write_control(const char *text)
{
	const char *path = getenv("KEKD_FAULT_CONTROL");
	char new[4096];
	snprintf(new, sizeof new, "%s.new", path);
	FILE *file = fopen(new, "w");
	if (file == NULL || fputs(text, file) < 0 || fclose(file) != 0 || rename(new, path) != 0)
		fail("control file", 0);
}

static void *change(void *unused)
{
	static const char *const controls[] = {
		"",
		"token iv=init\n",
		"token iv=encrypt\nC_Encrypt error=CKR_DEVICE_ERROR after=5 count=2\n",
		"* latency=50us\ntoken parallel=2 iv=encrypt\n",
		"C_Decrypt hang\n",
		"C_Decrypt error=CKR_DEVICE_ERROR when=after\ntoken iv=init without=CKM_DES_ECB\n",
		"C_Dencrypt crash\n",
	};
	for (size_t i = 0; i < CHANGES; i++) {
		write_control(controls[i % (sizeof controls / sizeof *controls)]);
		usleep(3000);
	}
	write_control("");
	done = true;
	return unused;
}

static void make_token(void)
{
	static CK_UTF8CHAR pin[] = "1234", label[32 + 1] = "drive                           ";
	CK_ULONG n = 1;
	CK_SESSION_HANDLE s;
	must("C_GetSlotList", p11->C_GetSlotList(CK_FALSE, &slot, &n));
	must("C_InitToken", p11->C_InitToken(slot, pin, 4, label));
	n = 1;
	must("C_GetSlotList", p11->C_GetSlotList(CK_TRUE, NULL, &n));
	CK_SLOT_ID slots[8];
	n = 8;
	must("C_GetSlotList", p11->C_GetSlotList(CK_TRUE, slots, &n));
	slot = slots[0];
	must("C_OpenSession", p11->C_OpenSession(slot, CKF_SERIAL_SESSION | CKF_RW_SESSION, NULL, NULL, &s));
	must("C_Login", p11->C_Login(s, CKU_SO, pin, 4));
	must("C_InitPIN", p11->C_InitPIN(s, pin, 4));
	must("C_Logout", p11->C_Logout(s));
	must("C_Login", p11->C_Login(s, CKU_USER, pin, 4));

	CK_BBOOL yes = CK_TRUE;
	CK_ULONG length = 32;
	CK_ATTRIBUTE template[] = {
		{CKA_ENCRYPT, &yes, sizeof yes}, {CKA_DECRYPT, &yes, sizeof yes},
		{CKA_TOKEN, &yes, sizeof yes}, {CKA_VALUE_LEN, &length, sizeof length},
	};
	CK_MECHANISM m = {CKM_AES_KEY_GEN, NULL, 0};
	write_control("token objects=1 free_private=1\n");
	usleep(2000);
	must("C_GenerateKey", p11->C_GenerateKey(s, &m, template, 4, &key));
	CK_OBJECT_HANDLE second;
	CK_RV rv = p11->C_GenerateKey(s, &m, template, 4, &second);
	if (rv != CKR_DEVICE_MEMORY)
		fail("a second object", rv);

	/* A question for the length is refused with the rest. */
	CK_ULONG n_out;
	write_control("C_Dencrypt crash\n");
	usleep(2000);
	rv = p11->C_Encrypt(s, pin, 4, NULL, &n_out);
	if (rv != CKR_ARGUMENTS_BAD)
		fail("a length under a malformed control file", rv);
	write_control("");
	usleep(2000);
	rv = p11->C_Encrypt(s, pin, 4, NULL, &n_out);
	if (rv != CKR_OPERATION_NOT_INITIALIZED)
		fail("a length without an operation", rv);
}

static int run(void)
{
	CK_C_INITIALIZE_ARGS arguments = {.flags = CKF_OS_LOCKING_OK};
	must("C_GetFunctionList", C_GetFunctionList(&p11));
	must("C_Initialize", p11->C_Initialize(&arguments));
	make_token();

	pthread_t workers[THREADS], changer;
	pthread_create(&changer, NULL, change, NULL);
	for (int i = 0; i < THREADS; i++)
		pthread_create(&workers[i], NULL, work, NULL);
	for (int i = 0; i < THREADS; i++)
		pthread_join(workers[i], NULL);
	pthread_join(changer, NULL);
	usleep(2000);
	must("C_Finalize", p11->C_Finalize(NULL));
	printf("opened %lu refused %lu\n", opened, refused);
	return opened == 0 || refused == 0;
}

int main(int argc, char **argv)
{
	if (argc == 2 && strcmp(argv[1], "parse") == 0)
		return parse();
	if (argc == 2 && strcmp(argv[1], "run") == 0)
		return run();
	return 2;
}
