/*
 * A token with room for so many objects. They are counted in the token itself, before each new
 * one, so that what other processes made counts too, and destroying one makes room again.
 */
#include <pthread.h>

#include "fault.h"

/* Held from the count until the object is made. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static CK_RV count_objects(CK_SESSION_HANDLE session, uint64_t *objects)
{
	CK_BBOOL yes = CK_TRUE;
	CK_ATTRIBUTE on_token = {CKA_TOKEN, &yes, sizeof yes};
	CK_OBJECT_HANDLE found[64];
	CK_ULONG n;
	CK_RV rv = real->C_FindObjectsInit(session, &on_token, 1);
	if (rv != CKR_OK)
		return rv;
	*objects = 0;
	do {
		n = 0;
		rv = real->C_FindObjects(session, found, sizeof found / sizeof *found, &n);
		*objects += n;
	} while (rv == CKR_OK && n > 0);
	real->C_FindObjectsFinal(session);
	return rv;
}

CK_RV room_enter(const struct token *token, CK_SESSION_HANDLE session)
{
	pthread_mutex_lock(&lock);
	CK_SESSION_INFO info;
	CK_SESSION_HANDLE own;
	uint64_t objects = 0;
	/* Not in the caller's session: it may be in the middle of a search. */
	CK_RV rv = real->C_GetSessionInfo(session, &info);
	if (rv == CKR_OK)
		rv = real->C_OpenSession(info.slotID, CKF_SERIAL_SESSION, NULL, NULL, &own);
	if (rv == CKR_OK) {
		rv = count_objects(own, &objects);
		real->C_CloseSession(own);
	}
	if (rv == CKR_OK && objects >= token->objects)
		rv = CKR_DEVICE_MEMORY;
	return rv;
}

void room_leave(void)
{
	pthread_mutex_unlock(&lock);
}
