package publish_test

import (
	"testing"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/publish"
)

// Every way in which the API, the broker's store and the site can differ in age, and what follows from it.
func TestAgree(t *testing.T) {
	t.Parallel()
	mine, other := bundlefmt.Sum([]byte("mine")), bundlefmt.Sum([]byte("other"))
	for _, c := range []struct {
		name          string
		api           bundlefmt.Serial
		store, site   bundlefmt.Serial // 0: none
		follows       bundlefmt.Digest // what the site says it follows; zero: an agent that does not say
		heard, online bool
		unused        bool
		resume        string

		conflict string
		command  bundlefmt.Serial
		serial   bundlefmt.Serial // of the next document
		base     bool             // the document on the broker is what the site follows
		resumed  bool
	}{
		{name: "a new cluster", serial: 1},
		{name: "all the same", api: 9, store: 9, site: 9, follows: mine, heard: true, serial: 10, base: true},
		{name: "all the same, hub just started", api: 9, store: 9, site: 9, follows: mine, serial: 10, base: true},
		{name: "ended between writing down and publishing", api: 10, store: 9, site: 9, follows: mine, heard: true, serial: 11, base: true},
		{name: "written down by this hub and not published, site offline", api: 10, unused: true, store: 9, site: 9, follows: mine, serial: 11, base: true},
		{name: "the site has not taken the newest yet", api: 9, store: 9, site: 8, follows: other, heard: true, serial: 10, base: true},

		{name: "API one behind", api: 8, store: 9, site: 9, follows: mine, heard: true, conflict: publish.APIOlder, command: 9},
		{name: "API many behind, site offline", api: 2, store: 9, site: 9, follows: mine, conflict: publish.APIOlder, command: 9},
		{name: "API lost", store: 9, site: 9, follows: mine, heard: true, conflict: publish.APIOlder, command: 9},
		{name: "API behind, by consent", api: 2, store: 9, site: 9, follows: mine, heard: true, resume: "9", serial: 10, base: true, resumed: true},
		{name: "API behind, consent to another number", api: 2, store: 9, site: 9, follows: mine, resume: "8", conflict: publish.APIOlder, command: 9},

		{name: "store one behind", api: 9, store: 8, site: 9, follows: other, heard: true, serial: 10},
		{name: "store many behind", api: 9, store: 2, site: 9, follows: other, heard: true, serial: 10},
		{name: "store lost", api: 9, site: 9, follows: other, heard: true, serial: 10},
		{name: "store behind, site not heard", api: 9, store: 2, site: 2, follows: mine, conflict: publish.StoreOlder, command: 9},
		{name: "store lost, site not heard", api: 9, conflict: publish.StoreOlder, command: 9},
		{name: "store lost, site not heard, by consent", api: 9, resume: "9", serial: 10, resumed: true},

		{name: "API and store one behind, not noticed yet", api: 8, store: 8, site: 8, follows: mine, serial: 9, base: true},
		{name: "then an order under the number that the site knows", api: 9, store: 9, site: 9, follows: other, heard: true, conflict: publish.OtherDocument, command: 9},
		{name: "one number, two documents, by consent", api: 9, store: 9, site: 9, follows: other, heard: true, resume: "9", serial: 10, resumed: true},
		{name: "API and store many behind", api: 2, store: 2, site: 9, follows: other, heard: true, conflict: publish.SiteNewer, command: 9},
		{name: "API and store lost", site: 9, follows: other, heard: true, conflict: publish.SiteNewer, command: 9},
		{name: "API behind, store lost", api: 2, site: 9, follows: other, heard: true, conflict: publish.SiteNewer, command: 9},
		{name: "API behind, store further behind", api: 5, store: 2, site: 9, follows: other, heard: true, conflict: publish.SiteNewer, command: 9},
		{name: "API behind, store less behind", api: 2, store: 5, site: 9, follows: other, heard: true, conflict: publish.SiteNewer, command: 9},
		{name: "the site is newer, by consent", api: 2, store: 5, site: 9, follows: other, heard: true, resume: "9", serial: 10, resumed: true},

		{name: "an order that the silent site has not confirmed is replaced under its number", api: 9, store: 9, site: 8, follows: other, serial: 9, base: true},
		{name: "also if nothing is known of the site", api: 9, store: 9, serial: 9, base: true},
		{name: "not while it connects", api: 9, store: 9, site: 8, follows: other, online: true, conflict: publish.NotReported},
		{name: "not if its agent does not say what it follows", api: 9, store: 9, site: 8, serial: 10, base: true},
		{name: "an agent that does not say what it follows", api: 9, store: 9, site: 9, heard: true, serial: 10, base: true},

		{name: "site behind", api: 9, store: 9, site: 2, follows: other, heard: true, serial: 10, base: true},
		{name: "site lost", api: 9, store: 9, site: 0, heard: true, serial: 10, base: true},
		{name: "no number left", api: bundlefmt.MaxSerial, store: 9, site: 9, follows: mine, heard: true, conflict: publish.UsedUp},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := publish.Records{API: c.api, Unused: c.unused, Heard: c.heard, Online: c.online, Resume: c.resume}
			if c.store > 0 {
				r.Ordered, r.Message = &bundlefmt.Desired{Serial: c.store}, mine
			}
			if c.site > 0 || c.heard {
				r.Reported = &bundlefmt.Reported{Serial: c.site, Document: c.follows}
			}
			g, conflict := r.Agree()
			if (g == nil) == (conflict == nil) {
				t.Fatalf("got %+v and %+v", g, conflict)
			}
			if conflict != nil {
				if conflict.Reason != c.conflict || conflict.Resume != c.command && conflict.Reason != publish.NotReported {
					t.Errorf("got %+v, want %s that %d ends", conflict, c.conflict, c.command)
				}
				return
			}
			if c.conflict != "" || g.Serial != c.serial || (g.Base != nil) != c.base || g.Resumed != c.resumed {
				t.Errorf("got %+v, want %+v", g, c)
			}
		})
	}
}
