// Package publish puts rendered bundles and desired documents on topics, and takes away what no cluster needs any more.
//
// The broker's retained messages are the only copy of what was ordered; see Load. Publishing may happen twice, at any
// time, with the same result: parts of a bundle are the same bytes for the same digest and key, and a document
// is only ever replaced by one with a higher serial.
package publish

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/internal/mqtt"
	"shoal.dev/shoal/topics"
)

// Options of a Publisher.
type Options struct {
	Carrier mqtt.Carrier
	Prefix  topics.Prefix
	Signer  bundlefmt.Signer
	Log     zerolog.Logger
}

// Publisher is safe for concurrent use.
type Publisher struct {
	o      Options
	limits bundlefmt.Limits

	mu       sync.Mutex
	sealed   map[bundlefmt.Digest]bundlefmt.Sealed
	used     map[bundlefmt.Digest]time.Time // when a sealed bundle was last asked for
	retained map[string]bundlefmt.Digest    // part and trust topics the broker holds, with the hash of what is there
	needed   map[topics.Cluster][]needed    // parts that each cluster's document in force names
}

type needed struct {
	group  string
	digest string
}

// New makes a Publisher that knows nothing of what is retained; see Saw.
func New(o Options) *Publisher {
	return &Publisher{
		o: o, limits: bundlefmt.DefaultLimits(),
		sealed: map[bundlefmt.Digest]bundlefmt.Sealed{}, used: map[bundlefmt.Digest]time.Time{},
		retained: map[string]bundlefmt.Digest{}, needed: map[topics.Cluster][]needed{},
	}
}

// Saw takes note of a retained message found on the broker at start.
func (p *Publisher) Saw(t topics.Topic, m mqtt.Message) {
	if t.Kind != topics.Part && t.Kind != topics.Trust {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(m.Payload) == 0 {
		delete(p.retained, m.Topic)
		return
	}
	p.retained[m.Topic] = bundlefmt.Sum(m.Payload)
}

// Adopt takes note of the document in force for a cluster: its parts are needed.
func (p *Publisher) Adopt(c topics.Cluster, d *bundlefmt.Desired) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d == nil {
		delete(p.needed, c)
		return
	}
	p.needed[c] = names(d)
}

// need adds what a document names to what its cluster's document in force names.
func (p *Publisher) need(c topics.Cluster, d *bundlefmt.Desired) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.needed[c] = append(p.needed[c], names(d)...)
}

func names(d *bundlefmt.Desired) []needed {
	n := make([]needed, 0, len(d.Deployments))
	for _, x := range d.Deployments {
		n = append(n, needed{x.Group, x.Digest.Short()})
	}
	return n
}

// Seal compresses and signs a bundle, once per digest.
func (p *Publisher) Seal(b *bundlefmt.Bundle, now time.Time) (bundlefmt.Sealed, error) {
	digest := b.Digest()
	p.mu.Lock()
	s, ok := p.sealed[digest]
	p.used[digest] = now
	p.mu.Unlock()
	if ok {
		return s, nil
	}
	s, err := bundlefmt.Seal(b, p.o.Signer, p.limits)
	if err != nil {
		return s, err
	}
	p.mu.Lock()
	p.sealed[digest] = s
	p.mu.Unlock()
	return s, nil
}

// Sealed finds a bundle that Seal was given before.
func (p *Publisher) Sealed(d bundlefmt.Digest) (bundlefmt.Sealed, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.sealed[d]
	return s, ok
}

// Desired publishes a cluster's document: first the parts it names that the broker does not hold, then the document itself,
// so that an agent never reads of a part that is not there yet. It returns the signed bytes.
func (p *Publisher) Desired(ctx context.Context, c topics.Cluster, d *bundlefmt.Desired) ([]byte, error) {
	p.need(c, d) // before the parts go out: Collect must not take them for garbage
	for _, x := range d.Deployments {
		if s, ok := p.Sealed(x.Digest); ok { // else: ordered before this hub started, its parts are retained
			if err := p.parts(ctx, c, x.Group, s); err != nil {
				return nil, fmt.Errorf("publish bundle of %s: %w", x.Name, err)
			}
		}
	}
	msg, err := d.Sign(p.o.Signer, p.limits)
	if err != nil {
		return nil, err
	}
	if err := p.Document(ctx, c, d.Serial, msg); err != nil {
		return nil, err
	}
	p.Adopt(c, d)
	return msg, nil
}

// Document publishes signed bytes as they are: again, when a cluster has not confirmed them.
func (p *Publisher) Document(ctx context.Context, c topics.Cluster, serial bundlefmt.Serial, msg []byte) error {
	err := p.o.Carrier.Publish(ctx, mqtt.Message{
		Topic: p.o.Prefix.Desired(c), Payload: msg, Retain: true, ContentType: bundlefmt.TypeDesired,
		Properties: []mqtt.Property{{Key: "cluster", Value: c.String()}, {Key: "serial", Value: serial.String()}},
	})
	if err != nil {
		return fmt.Errorf("publish desired document: %w", err)
	}
	return nil
}

func (p *Publisher) parts(ctx context.Context, c topics.Cluster, group string, s bundlefmt.Sealed) error {
	for i, part := range s.Parts {
		topic, sum := p.o.Prefix.Part(c, group, s.Digest.Short(), i), bundlefmt.Sum(part)
		p.mu.Lock()
		there := p.retained[topic] == sum
		p.mu.Unlock()
		if there {
			continue
		}
		if err := p.part(ctx, topic, s, i); err != nil {
			return err
		}
		p.mu.Lock()
		p.retained[topic] = sum
		p.mu.Unlock()
	}
	return nil
}

func (p *Publisher) part(ctx context.Context, topic string, s bundlefmt.Sealed, i int) error {
	return p.o.Carrier.Publish(ctx, mqtt.Message{
		Topic: topic, Payload: s.Parts[i], Retain: true, ContentType: bundlefmt.TypeBundle,
		Properties: []mqtt.Property{{Key: "digest", Value: s.Digest.String()}, {Key: "part", Value: strconv.Itoa(i) + "/" + strconv.Itoa(len(s.Parts))}},
	})
}

// Again publishes parts that a cluster asked for, whatever the broker is believed to hold. It reports false for a
// bundle that is not at hand, or that the cluster's document does not name: nobody else's bundles are given out.
func (p *Publisher) Again(ctx context.Context, c topics.Cluster, r *bundlefmt.PartRequest) (bool, error) {
	p.mu.Lock()
	s, ok := p.sealed[r.Digest]
	group, named := "", false
	for _, n := range p.needed[c] {
		if n.digest == r.Digest.Short() {
			group, named = n.group, true
		}
	}
	p.mu.Unlock()
	if !ok || !named {
		return false, nil
	}
	for _, i := range r.Parts {
		if i < 0 || i >= len(s.Parts) {
			continue
		}
		if err := p.part(ctx, p.o.Prefix.Part(c, group, s.Digest.Short(), i), s, i); err != nil {
			return false, fmt.Errorf("publish part %d again: %w", i, err)
		}
	}
	return true, nil
}

// Trust publishes a workspace's trust document unless the broker holds just these bytes.
func (p *Publisher) Trust(ctx context.Context, workspace string, msg []byte) error {
	topic, sum := p.o.Prefix.Trust(workspace), bundlefmt.Sum(msg)
	p.mu.Lock()
	there := p.retained[topic] == sum
	p.mu.Unlock()
	if there {
		return nil
	}
	if err := p.o.Carrier.Publish(ctx, mqtt.Message{Topic: topic, Payload: msg, Retain: true, ContentType: bundlefmt.TypeTrust}); err != nil {
		return fmt.Errorf("publish trust document: %w", err)
	}
	p.mu.Lock()
	p.retained[topic] = sum
	p.mu.Unlock()
	return nil
}

// Ask publishes a request to a cluster; the answer comes as a message from the cluster.
func (p *Publisher) Ask(ctx context.Context, c topics.Cluster, v topics.Verb) error {
	err := p.o.Carrier.Publish(ctx, mqtt.Message{Topic: p.o.Prefix.Request(c, v), ContentType: bundlefmt.TypeRequest, Payload: []byte("{}"), ResponseTopic: p.o.Prefix.Response(c, v)})
	if err != nil {
		return fmt.Errorf("ask for %s: %w", v, err)
	}
	return nil
}

// Forget clears everything retained for a cluster that was taken out of the fleet. The site keeps running what it has.
func (p *Publisher) Forget(ctx context.Context, c topics.Cluster) error {
	p.Adopt(c, nil)
	for _, topic := range []string{p.o.Prefix.Desired(c), p.o.Prefix.Reported(c), p.o.Prefix.Presence(c)} {
		if err := p.clear(ctx, topic); err != nil {
			return err
		}
	}
	return nil
}

// idle is how long a sealed bundle that no document names is kept at hand.
const idle = 10 * time.Minute

// Collect clears parts that no document in force names. A cluster that is still fetching one has a newer document waiting.
func (p *Publisher) Collect(ctx context.Context, now time.Time) error {
	p.mu.Lock()
	keep, digests := map[string]bool{}, map[string]bool{}
	for c, list := range p.needed {
		for _, n := range list {
			digests[n.digest] = true
			if n.group != "" {
				keep[c.Workspace+"/"+n.group+"/"+n.digest] = true
			} else {
				keep[c.String()+"//"+n.digest] = true
			}
		}
	}
	var old []string
	for topic := range p.retained {
		t, err := p.o.Prefix.Parse(topic)
		if err != nil || t.Kind != topics.Part {
			continue
		}
		key := t.Workspace + "/" + t.Group + "/" + t.Digest
		if t.Cluster != "" {
			key = t.ClusterID().String() + "//" + t.Digest
		}
		if !keep[key] {
			old = append(old, topic)
		}
	}
	maps.DeleteFunc(p.sealed, func(d bundlefmt.Digest, _ bundlefmt.Sealed) bool {
		return !digests[d.Short()] && now.Sub(p.used[d]) > idle
	})
	p.mu.Unlock()
	for _, topic := range old {
		if err := p.clear(ctx, topic); err != nil {
			return err
		}
	}
	if len(old) > 0 {
		p.o.Log.Debug().Int("parts", len(old)).Msg("parts cleared")
	}
	return nil
}

func (p *Publisher) clear(ctx context.Context, topic string) error {
	if err := p.o.Carrier.Publish(ctx, mqtt.Message{Topic: topic, Retain: true}); err != nil {
		return fmt.Errorf("clear %s: %w", topic, err)
	}
	p.mu.Lock()
	delete(p.retained, topic)
	p.mu.Unlock()
	return nil
}
