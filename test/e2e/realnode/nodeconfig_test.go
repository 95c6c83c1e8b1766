package realnode

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/fairlead/fairlead/test/e2e/realnode/machine"
)

// config is what runs on the node.
func (n *node) config() (machine.Config, error) {
	key := n.cluster.kube.keys.path
	conflist, err := n.cluster.network.conflist(n)
	if err != nil {
		return machine.Config{}, err
	}
	files := map[string]string{"10-pods.conflist": conflist, "containerd.toml": containerdConfig}
	files["kubelet.yaml"] = fmt.Sprintf(kubeletConfig, n.cluster.network.dns(), key(n.Name+".crt"), key(n.Name+".key"), key("ca.crt"))
	addresses := strings.Join(each(n.cluster.network.families, n.IPv4.String(), n.IPv6.String()), ",")
	etc := func(name string) string { return filepath.Join("/run/etc", name) }
	containerd, err := exec.LookPath("containerd")
	if err != nil {
		return machine.Config{}, fmt.Errorf("%w (test/tools/setup.sh node installs it)", err)
	}
	c := machine.Config{
		Name: n.Name, Dir: n.disk, Cgroup: n.cgroup(),
		Folders: map[string]string{"lib": "/var/lib", "varlog": "/var/log", "etc": "/run/etc"},
		Files:   map[string]string{"/etc/resolv.conf": "nameserver " + n.cluster.kube.host.IPv4.String() + "\n"},
		Programs: []machine.Program{
			{Name: "containerd", Args: []string{containerd, "-c", etc("containerd.toml")}},
			{Name: "kubelet", Args: []string{
				n.cluster.program("kubelet"), "--config", etc("kubelet.yaml"), "--kubeconfig", key(n.Name + ".kubeconfig"),
				"--hostname-override", n.Name, "--node-ip", addresses, "--v=2",
			}},
		},
	}
	if d := n.cluster.network.daemon; d != nil {
		if err := d.addTo(n, files, &c); err != nil {
			return machine.Config{}, err
		}
	}
	return c, n.write(files)
}

// write puts files into the folder that the machine sees as /run/etc.
func (n *node) write(files map[string]string) error {
	folder := filepath.Join(n.disk, "etc")
	errs := []error{os.MkdirAll(folder, 0o755)}
	for name, content := range files {
		errs = append(errs, os.WriteFile(filepath.Join(folder, name), []byte(content), 0o644))
	}
	return errors.Join(errs...)
}

// containerdConfig lets containers have the OOM score that the kubelet wants only where the machine's root may give it.
const containerdConfig = `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "registry.test/pause:1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/run/etc"
`

// kubeletConfig has the DNS Service's address and the files of the kubelet's certificate, key and authority to fill in.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
enforceNodeAllocatable: []
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
volumePluginDir: /var/lib/kubelet/plugins
clusterDomain: cluster.local
clusterDNS: [%s]
resolvConf: /etc/resolv.conf
tlsCertFile: %s
tlsPrivateKeyFile: %s
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %s}}
authorization: {mode: Webhook}
evictionHard: {memory.available: 50Mi, nodefs.available: 1%%, imagefs.available: 1%%}
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 4s
`
