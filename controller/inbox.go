package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"
	"k8s.io/apimachinery/pkg/types"

	"shoal.dev/shoal/bundlefmt"
	"shoal.dev/shoal/controller/api/v1alpha1"
	"shoal.dev/shoal/controller/enroll"
	"shoal.dev/shoal/internal/mqtt"
	"shoal.dev/shoal/topics"
)

// inbox sorts what comes from the broker. Its handlers run on the carrier's goroutine and only take note; work that waits for
// somebody is done by run.
type inbox struct {
	h      *Hub
	limits bundlefmt.Limits
	log    zerolog.Logger
	work   chan letter
}

type letter struct {
	topic   topics.Topic
	payload []byte
}

// backlog is how many enrolments and requests for parts may wait. Who is turned away asks again.
const backlog = 1024

func newInbox(h *Hub) *inbox {
	return &inbox{h: h, limits: bundlefmt.DefaultLimits(), log: component(h.o.Log, "inbox"), work: make(chan letter, backlog)}
}

// own takes in what this hub published before it was restarted.
func (i *inbox) own(m mqtt.Message) {
	t, err := i.h.o.Prefix.Parse(m.Topic)
	if err != nil || len(m.Payload) == 0 {
		return
	}
	if t.Kind != topics.Desired {
		i.h.work.Publisher.Saw(t, m)
		return
	}
	d, err := i.h.view.Adopt(t.ClusterID(), m.Payload)
	if err != nil {
		i.log.Warn().Err(err).Str("topic", m.Topic).Msg("document on the broker ignored: it is not this hub's")
		return
	}
	i.h.work.Publisher.Adopt(t.ClusterID(), d)
}

// receive takes in a message of a cluster or a site that enrols.
func (i *inbox) receive(m mqtt.Message) {
	t, err := i.h.o.Prefix.Parse(m.Topic)
	if err != nil {
		return
	}
	switch t.Kind {
	case topics.EnrollRequest, topics.Request:
		select {
		case i.work <- letter{t, m.Payload}:
		default:
			i.log.Warn().Str("topic", m.Topic).Msg("too busy: request dropped, the sender will ask again")
		}
	default:
		i.h.view.Hear(t, m, time.Now())
	}
}

func (i *inbox) run(ctx context.Context, c mqtt.Carrier) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case l := <-i.work:
			if err := i.answer(ctx, c, l); err != nil && ctx.Err() == nil {
				i.log.Warn().Err(err).Str("topic", i.h.o.Prefix.Name(l.topic)).Msg("request failed")
			}
		}
	}
}

func (i *inbox) answer(ctx context.Context, c mqtt.Carrier, l letter) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if l.topic.Kind == topics.EnrollRequest {
		return i.enroll(ctx, c, l)
	}
	r, err := bundlefmt.ParsePartRequest(l.payload, i.limits)
	if err != nil {
		return err
	}
	found, err := i.h.work.Publisher.Again(ctx, l.topic.ClusterID(), r)
	if err == nil && !found {
		return fmt.Errorf("cluster %s asks for bundle %s, which it is not to run or which is not rendered yet", l.topic.ClusterID(), r.Digest.Short())
	}
	return err
}

func (i *inbox) enroll(ctx context.Context, c mqtt.Carrier, l letter) error {
	answer, failure := i.redeem(ctx, l)
	body, err := json.Marshal(enroll.Respond(answer, failure))
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	t := l.topic
	t.Kind = topics.EnrollResponse
	if err := c.Publish(ctx, mqtt.Message{Topic: i.h.o.Prefix.Name(t), Payload: body, ContentType: bundlefmt.TypeEnroll}); err != nil {
		return fmt.Errorf("answer enrolment: %w", err)
	}
	return failure
}

func (i *inbox) redeem(ctx context.Context, l letter) (*bundlefmt.EnrollResponse, error) {
	r, err := bundlefmt.ParseEnrollRequest(l.payload, i.limits)
	if err != nil {
		return nil, enroll.Final{Reason: err}
	}
	var t v1alpha1.ClusterRegistrationToken
	if err := i.h.mgr.GetClient().Get(ctx, types.NamespacedName{Namespace: l.topic.Workspace, Name: l.topic.Token}, &t); err != nil {
		return nil, fmt.Errorf("read token %s: %w", l.topic.Token, err)
	}
	answer, err := enroll.Redeem(ctx, i.h.mgr.GetClient(), i.h.keys, &t, r)
	if final := (enroll.Final{}); errors.As(err, &final) {
		i.h.work.Refusals.Note(types.NamespacedName{Namespace: t.Namespace, Name: t.Name}, r.Cluster, err)
	}
	if err == nil {
		i.log.Info().Str("cluster", l.topic.Workspace+"/"+r.Cluster).Str("token", t.Name).Str("agent", r.Agent).Msg("cluster enrolled")
	}
	return answer, err
}
