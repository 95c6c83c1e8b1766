package controlplane

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/fairlead/fairlead/server/source"
	"github.com/fairlead/fairlead/translate/model"
)

// BenchmarkOneChange is from when a source sees one endpoint change until a node's client has received its assignment,
// among as many Services, of 10 endpoints each.
func BenchmarkOneChange(b *testing.B) {
	for _, services := range []int{100, 10_000} {
		b.Run(fmt.Sprint(services, "-services"), func(b *testing.B) {
			queue := make(chan *source.Queue, 1)
			c := startServer(b, sourceFunc(func(ctx context.Context, q *source.Queue) error {
				queue <- q
				<-ctx.Done()
				return nil
			}))
			q := <-queue
			for i := range services {
				name := fmt.Sprint("s", i)
				q.Set(source.Event{Object: object(name, netip.AddrFrom4([4]byte{10, 96, byte(i >> 8), byte(i)}).String())}, sliceChange(name, 0))
			}
			q.SetSynced(model.KindService, model.KindEndpointSlice, model.KindNode)
			n := c.connect("n1")
			n.until("everything is there", n.has(services, services, services, 0))

			i := 0
			for b.Loop() {
				i++
				q.Set(sliceChange("s0", i))
				n.ack(n.take("the change comes"))
			}
		})
	}
}

// sliceChange returns the change of a Service's slice to its nth version.
func sliceChange(service string, n int) source.Event {
	now := time.Now()
	key := model.ObjectKey{Kind: model.KindEndpointSlice, Namespace: "default", Name: service + "-1"}
	s := &model.EndpointSlice{
		Namespace: key.Namespace, Name: key.Name,
		Service: model.ServiceKey{Namespace: "default", Name: service},
		Version: model.ObjectVersion{Object: key.String(), At: now},
		Family:  model.IPv4,
		Ports:   []model.SlicePort{{Name: "http", Protocol: model.TCP, Port: 8080}},
	}
	for i := range 10 {
		s.Endpoints = append(s.Endpoints, model.SliceEndpoint{
			Address: netip.AddrFrom4([4]byte{10, 244, byte(n), byte(i + 1)}), Node: "n1", Zone: "zone-a", Ready: true, Serving: true,
		})
	}
	return source.Event{Object: model.Object{Key: key, Slice: s}, Seen: now}
}
