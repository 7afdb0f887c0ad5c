// Package hierarchy holds the words of kekd: identifiers, names, states and the errors that
// a refusal can have. Every package may import it, and it imports none of ours.
//
// A cluster holds tenants; a tenant is one key domain and holds keys; a key has numbered
// versions, of which at most one is active. A version has, in each region of the tenant's
// placement, key objects in that region's token. Names are for people and may be looked up;
// what is sealed, signed or derived names IDs, never names.
package hierarchy
