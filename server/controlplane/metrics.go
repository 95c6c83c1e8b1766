package controlplane

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/metric"
)

// observe registers a callback by which the meter reads the state of the queue and of the certificate.
func (s *Server) observe(meter metric.Meter) error {
	waiting, err1 := meter.Float64ObservableGauge("fairlead.queue.length", metric.WithDescription("Changes that wait to be translated."))
	age, err2 := meter.Float64ObservableGauge("fairlead.queue.age", metric.WithUnit("s"),
		metric.WithDescription("How long the oldest change has waited to be translated."))
	validity, err3 := meter.Float64ObservableGauge("fairlead.certificate.validity", metric.WithUnit("s"),
		metric.WithDescription("How long the serving certificate remains valid."))
	_, err := meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		oldest, n := s.queue.Oldest()
		o.ObserveFloat64(waiting, float64(n))
		o.ObserveFloat64(age, secondsSince(oldest))
		if certificates := s.cfg.Certificates; certificates != nil && !certificates.Expires().IsZero() {
			o.ObserveFloat64(validity, time.Until(certificates.Expires()).Seconds())
		}
		return nil
	}, waiting, age, validity)
	return errors.Join(err1, err2, err3, err)
}

// secondsSince returns how long ago t was, 0 for the zero time.
func secondsSince(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return time.Since(t).Seconds()
}
