package grpc

import (
	"testing"

	"github.com/fairlead/fairlead/translate/model"
)

func TestParseReadsTheNamesThatDNSHas(t *testing.T) {
	web := func(port string) target { return target{model.ServiceKey{Namespace: "default", Name: "web"}, port} }
	for name, want := range map[string]target{
		"web.default:80":                         web("80"),
		"web.default.svc:80":                     web("80"),
		"web.default.svc.cluster.local:80":       web("80"),
		"web.default:http":                       web("http"),
		"web.default.svc.cluster.local:http":     web("http"),
		"web.svc:80":                             {model.ServiceKey{Namespace: "svc", Name: "web"}, "80"},
		"svc.svc.svc:80":                         {model.ServiceKey{Namespace: "svc", Name: "svc"}, "80"},
		"cluster.local:80":                       {model.ServiceKey{Namespace: "local", Name: "cluster"}, "80"},
		"cluster.local.svc.cluster.local:80":     {model.ServiceKey{Namespace: "local", Name: "cluster"}, "80"},
		"web":                                    {},
		"web:80":                                 {},
		"web.default":                            {},
		"web.default:":                           {},
		"web.default.cluster.local:80":           {},
		"web.default.pod.cluster.local:80":       {},
		"web.default.svc.example.org:80":         {},
		"a.web.default.svc.cluster.local:80":     {},
		".default:80":                            {},
		"web..svc:80":                            {},
		"":                                       {},
		":80":                                    {},
		"[fd00::1]:80":                           {},
		"web.default.svc.cluster.local.:80":      {},
		"web.default.svc.cluster.localhost:80":   {},
		"10.96.0.10:80":                          {},
		"web.default.svc.cluster.local.svc:80":   {},
		"xdstp://authority/envoy/web.default:80": {},
	} {
		got, ok := DefaultDomain.parse(name)
		if ok != (want != target{}) || got != want {
			t.Errorf("%q is read as %+v, %t; want %+v", name, got, ok, want)
		}
	}
}

func TestFormatIsReadAsTheSame(t *testing.T) {
	for _, d := range []Domain{DefaultDomain, "k8s.example.org"} {
		want := target{model.ServiceKey{Namespace: "shop", Name: "cart"}, "grpc"}
		if got, ok := d.parse(d.format(want)); !ok || got != want {
			t.Errorf("domain %s: %q is read as %+v, %t", d, d.format(want), got, ok)
		}
	}
}
