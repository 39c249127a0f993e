// Package store keeps on disk what an agent must not lose in a power cut: its identity, the documents it accepted, the
// serial floor, bundles, and a record of each deployment with everything that deployment may have created.
//
// It is a directory of plain files:
//
//	lock                      held (flock) while an agent runs
//	identity trust desired floor
//	records/NAME              one per deployment
//	bundles/DIGEST/N          part N of a bundle, as it came; keys: who could sign when it was complete
//	locks/NAME                written by the site: while it holds, nothing is changed; see [Lock]
//	status                    for "shoal-agent status"; may be lost
//	damaged/                  what could not be read, moved out of the way for a person to look at
//
// Every file is replaced atomically: written beside, synced, renamed, directory synced. All but parts, locks and status carry
// a line with their own SHA-256 and exist twice (NAME and NAME.copy, written in that order), because a flash cell that dies
// under the identity would otherwise cost a visit to the site. Parts need neither: they are checked against the signed
// header whenever they are used, and fetched again when they do not hold.
//
// A file that cannot be read is moved to damaged/, said in the log, and treated as missing; the rest goes on. That never
// leads to a deletion on the cluster: what is missing here is not known, and only what is known is removed.
package store
