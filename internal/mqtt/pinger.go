package mqtt

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho/log"
)

// pinger keeps the connection alive and notices a dead one after one and a half keep-alives without a byte from the
// broker. paho's own pinger wants the PINGRESP within a keep-alive, which fails while a large message crawls over a slow link
// in front of it: any byte that arrives is proof of life.
type pinger struct{ link *link }

func (p *pinger) Run(ctx context.Context, conn net.Conn, seconds uint16) error {
	if seconds == 0 {
		return nil
	}
	keepAlive := time.Duration(seconds) * time.Second
	tick := time.NewTicker(max(keepAlive/8, 50*time.Millisecond))
	defer tick.Stop()
	var pinged time.Time
	sent := make(chan struct{}, 1) // one PINGREQ at a time: a blocked link must not gather goroutines
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			read := time.Unix(0, p.link.lastRead.Load())
			wrote := time.Unix(0, p.link.lastWrite.Load())
			if silent := now.Sub(read); silent > keepAlive*3/2 && pinged.After(read) {
				return fmt.Errorf("%w: nothing from the broker for %s", ErrTimeout, silent.Round(time.Millisecond))
			}
			// A little early, so that a broker that counts exactly does not cut us off.
			due := keepAlive * 7 / 8
			if now.Sub(pinged) < due || now.Sub(read) < due && now.Sub(wrote) < due {
				continue
			}
			select {
			case sent <- struct{}{}:
			default:
				continue
			}
			pinged = now
			go func() { // ends at the latest when the connection is closed
				defer func() { <-sent }()
				_, _ = packets.NewControlPacket(packets.PINGREQ).WriteTo(conn)
			}()
		}
	}
}

func (*pinger) PacketSent()         {}
func (*pinger) PacketReceived()     {}
func (*pinger) PingResp()           {}
func (*pinger) SetDebug(log.Logger) {}
