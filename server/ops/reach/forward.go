package reach

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
)

// forward is a port on this machine's loopback that leads to a port in a pod.
type forward struct {
	address string
	cancel  context.CancelFunc
	ended   chan struct{} // Closed when it leads nowhere any more.
}

// alive reports whether it still leads to the pod.
func (f *forward) alive() bool {
	select {
	case <-f.ended:
		return false
	default:
		return true
	}
}

// stop ends it, and waits for that.
func (f *forward) stop() {
	f.cancel()
	<-f.ended
}

// startForward forwards to a port of the pod that the URL of the portforward subresource names. ctx bounds the start alone.
func startForward(ctx context.Context, config *rest.Config, u *url.URL, port int32) (*forward, error) {
	dialer, err := newDialer(config, u)
	if err != nil {
		return nil, err
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ready := make(chan struct{})
	p, err := portforward.NewOnAddressesForStreamingWithContext(running, dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port)}, ready, io.Discard, io.Discard)
	if err != nil {
		cancel()
		return nil, err
	}
	f := &forward{cancel: cancel, ended: make(chan struct{})}
	var failed error // Once ended is closed.
	go func() {
		defer close(f.ended)
		failed = p.ForwardPorts()
	}()
	select {
	case <-ready:
	case <-f.ended:
		cancel()
		return nil, failed
	case <-ctx.Done():
		cancel() // A dial under way has no context, and ends when the API server gives up.
		return nil, context.Cause(ctx)
	}
	ports, err := p.GetPorts()
	if err != nil {
		f.stop()
		return nil, err
	}
	f.address = fmt.Sprintf("127.0.0.1:%d", ports[0].Local)
	return f, nil
}

// newDialer returns a dialer that speaks SPDY over WebSockets, which API servers since 1.31 and the proxies before them
// understand, and SPDY alone with older ones, as kubectl does.
func newDialer(config *rest.Config, u *url.URL) (httpstream.Dialer, error) {
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	plain := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
	tunnel, err := portforward.NewSPDYOverWebsocketDialerForStreaming(u, config)
	if err != nil {
		return nil, err
	}
	return portforward.NewFallbackDialerForStreaming(tunnel, plain, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	}), nil
}
