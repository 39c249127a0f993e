// Package e2e holds stories: what a user does and sees, on real Kubernetes clusters with the built programs and links that
// break. One file in stories is one story, readable without Go; the words it is written with are listed in stories/README.md
// and made in verbs_test.go. Package fleet runs hub, sites and links; demo shows the main story.
//
//	go test ./e2e                        all stories
//	go test ./e2e -run Stories/install   one
//	go test ./e2e -run Stories/install -v -keep   and leave its logs there
package e2e
