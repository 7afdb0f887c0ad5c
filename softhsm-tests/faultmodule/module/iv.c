/*
 * A token that chooses the IV of AES-GCM itself, whatever the caller asks for. AWS CloudHSM does,
 * and writes it to the caller's pIv, which therefore has to live until the encryption has ended.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "fault.h"

enum { IV_SIZE = 12 };

/* An IV that its caller has not been told yet: one for each session at most. */
struct untold {
	struct untold *next;
	CK_SESSION_HANDLE session;
	CK_BYTE_PTR to;
	CK_BYTE iv[IV_SIZE];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct untold *untold;    /* under lock */
static _Atomic unsigned waiting; /* its length: spares others the lock */

static struct untold *take(CK_SESSION_HANDLE session)
{
	struct untold *found = NULL;
	pthread_mutex_lock(&lock);
	for (struct untold **at = &untold; *at != NULL; at = &(*at)->next) {
		if ((*at)->session == session) {
			found = *at;
			*at = found->next;
			waiting--;
			break;
		}
	}
	pthread_mutex_unlock(&lock);
	return found;
}

static void put(struct untold *one)
{
	/* What an operation that never ended left behind. */
	free(take(one->session));
	pthread_mutex_lock(&lock);
	one->next = untold;
	untold = one;
	waiting++;
	pthread_mutex_unlock(&lock);
}

CK_RV iv_init(enum iv at, CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key)
{
	if (at == IV_OF_CALLER || mechanism == NULL || mechanism->mechanism != CKM_AES_GCM)
		return real->C_EncryptInit(session, mechanism, key);

	CK_GCM_PARAMS *asked = mechanism->pParameter;
	if (asked == NULL || mechanism->ulParameterLen != sizeof *asked || asked->pIv == NULL ||
	    asked->ulIvLen != IV_SIZE)
		return CKR_MECHANISM_PARAM_INVALID;
	struct untold *one = calloc(1, sizeof *one);
	if (one == NULL)
		return CKR_HOST_MEMORY;
	if (getrandom(one->iv, IV_SIZE, 0) != IV_SIZE) {
		free(one);
		return CKR_FUNCTION_FAILED;
	}
	one->session = session;
	one->to = asked->pIv;

	CK_GCM_PARAMS params = *asked;
	params.pIv = one->iv;
	params.ulIvBits = 8 * IV_SIZE;
	CK_MECHANISM with_own = {CKM_AES_GCM, &params, sizeof params};
	CK_RV rv = real->C_EncryptInit(session, &with_own, key);
	if (rv == CKR_OK && at == IV_AT_ENCRYPT) {
		put(one);
		return rv;
	}
	if (rv == CKR_OK)
		memcpy(one->to, one->iv, IV_SIZE);
	free(one);
	return rv;
}

void iv_encrypted(CK_SESSION_HANDLE session, CK_RV rv)
{
	/* The one error after which the operation goes on. */
	if (waiting == 0 || rv == CKR_BUFFER_TOO_SMALL)
		return;
	struct untold *one = take(session);
	if (one != NULL && rv == CKR_OK)
		memcpy(one->to, one->iv, IV_SIZE);
	free(one);
}
