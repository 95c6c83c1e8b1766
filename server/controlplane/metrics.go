package controlplane

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/metric"
)

// observe registers a callback by which the meter reads the state of the process, of the queue and of the certificate.
func (s *Server) observe(meter metric.Meter) error {
	waiting, err1 := meter.Float64ObservableGauge("fairlead.queue.length", metric.WithDescription("Changes that wait to be translated."))
	age, err2 := meter.Float64ObservableGauge("fairlead.queue.age", metric.WithUnit("s"),
		metric.WithDescription("How long the oldest change has waited to be translated."))
	expiration, err3 := meter.Float64ObservableGauge("fairlead.certificate.expiration.timestamp", metric.WithUnit("s"),
		metric.WithDescription("When the serving certificate expires, in Unix time; 0 while there is none."))
	ready, err4 := meter.Float64ObservableGauge("fairlead.ready", metric.WithDescription("1 if the replica serves clients."))
	_, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		oldest, n := s.queue.Oldest()
		o.ObserveFloat64(waiting, float64(n))
		o.ObserveFloat64(age, secondsSince(oldest))
		serves := 0.0
		if s.notReady() == nil {
			serves = 1
		}
		o.ObserveFloat64(ready, serves)
		if certificates := s.cfg.Certificates; certificates != nil {
			expires := int64(0)
			if at := certificates.Expires(); !at.IsZero() {
				expires = at.Unix()
			}
			o.ObserveFloat64(expiration, float64(expires))
		}
		return nil
	}, waiting, age, expiration, ready)
	return errors.Join(err1, err2, err3, err4, err)
}

// secondsSince returns how long ago t was, 0 for the zero time.
func secondsSince(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return time.Since(t).Seconds()
}
