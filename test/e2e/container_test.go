package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"

	"github.com/fairlead/fairlead/server/lab"
	"github.com/fairlead/fairlead/test/e2e/apiserver"
)

// containerPod is a Pod whose only container is the process that its spec describes: its command, environment, volumes,
// user and capabilities, in its node's network or one of its own.
type containerPod struct {
	kubelet *containers
	object  *corev1.Pod
	node    *lab.Node
	host    *lab.Host
	dir     string // Of its volumes, but those of the node.
	deleted chan time.Duration

	process *lab.Process
	ready   bool
	since   metav1.Time // When ready last changed.
}

// containerPath is where containers look for programs.
const containerPath = "/opt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// spec is the pod's only container.
func (p *containerPod) spec() corev1.Container { return p.object.Spec.Containers[0] }

// run is the pod's life.
func (p *containerPod) run(ctx context.Context) error {
	if err := p.start(ctx); err != nil {
		return err
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			p.process.Kill()
			return nil
		case <-p.process.Done():
			return p.process.Ended()
		case grace := <-p.deleted:
			return p.end(ctx, grace)
		case <-tick.C:
		}
		if err := errors.Join(p.writeConfigMaps(ctx), p.report(ctx, p.probe(ctx) == nil)); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

func (p *containerPod) start(ctx context.Context) (err error) {
	p.host = p.node.Host
	if !p.object.Spec.HostNetwork {
		if p.host, err = p.node.AddPod(p.object.Name, 0); err != nil {
			return err
		}
	}
	p.since = metav1.Now()
	if err := p.report(ctx, false); err != nil {
		return err
	}
	args, err := p.arguments(ctx)
	if err != nil {
		return err
	}
	cmd := exec.Command(p.kubelet.cluster.binary("container"), args...)
	if cmd.Env, err = p.environment(); err != nil {
		return err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}
	p.process, err = p.host.Run(p.object.Name, p.kubelet.cluster.log(p.object.Name), cmd)
	return err
}

// arguments are those of the container program.
func (p *containerPod) arguments(ctx context.Context) ([]string, error) {
	root := filepath.Join(p.dir, "root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return nil, err
	}
	args := []string{"-root", root, "-bin", p.kubelet.cluster.binary("fairlead"), "-bin", p.kubelet.envoy}
	volumes, err := p.volumes(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range p.spec().VolumeMounts {
		mount := volumes[m.Name] + ":" + m.MountPath
		if m.ReadOnly {
			mount += ":ro"
		}
		args = append(args, "-mount", mount)
	}
	args = append(args, "-mount", volumes[apiAccess]+":/var/run/secrets/kubernetes.io/serviceaccount:ro")
	security := p.spec().SecurityContext
	if security.Privileged != nil && *security.Privileged {
		args = append(args, "-privileged")
	} else {
		for _, c := range security.Capabilities.Add {
			args = append(args, "-cap", string(c))
		}
	}
	if *security.ReadOnlyRootFilesystem {
		args = append(args, "-read-only")
	}
	return append(append(append(args, "-user", strconv.FormatInt(p.user(), 10), "--"), p.spec().Command...), p.spec().Args...), nil
}

// user is whom the container runs as.
func (p *containerPod) user() int64 {
	for _, user := range []*int64{p.spec().SecurityContext.RunAsUser, p.object.Spec.SecurityContext.RunAsUser} {
		if user != nil {
			return *user
		}
	}
	return 0
}

// environment is that of the spec, after what a kubelet gives every container: the address of the Service kubernetes.
func (p *containerPod) environment() ([]string, error) {
	env := []string{"PATH=" + containerPath, "KUBERNETES_SERVICE_HOST=" + apiserver.KubernetesService, "KUBERNETES_SERVICE_PORT=443"}
	for _, e := range p.spec().Env {
		value := e.Value
		if e.ValueFrom != nil {
			switch field := e.ValueFrom.FieldRef.FieldPath; field {
			case "spec.nodeName":
				value = p.node.Name
			case "metadata.namespace":
				value = p.object.Namespace
			case "metadata.name":
				value = p.object.Name
			default:
				return nil, fmt.Errorf("pod %s: environment variable %s: no field %s here", p.object.Name, e.Name, field)
			}
		}
		env = append(env, e.Name+"="+value)
	}
	return env, nil
}

// apiAccess is the volume that admission adds to Pods, for clients of the API server.
const apiAccess = "kube-api-access"

// volumes makes the Pod's volumes and returns their folders.
func (p *containerPod) volumes(ctx context.Context) (map[string]string, error) {
	folders := map[string]string{apiAccess: filepath.Join(p.dir, apiAccess)}
	ca, err := os.ReadFile(p.kubelet.cluster.kube.CA())
	if err != nil {
		return nil, err
	}
	if err := writeFiles(folders[apiAccess], map[string]string{"ca.crt": string(ca), "namespace": p.object.Namespace}); err != nil {
		return nil, err
	}
	// Without a token what the pod may do at the API server would not be seen to be nothing.
	if mount := p.object.Spec.AutomountServiceAccountToken; mount == nil || *mount {
		if err := p.writeToken(ctx, folders[apiAccess], corev1.ServiceAccountTokenProjection{Path: "token"}); err != nil {
			return nil, err
		}
	}
	for _, v := range p.object.Spec.Volumes {
		folder := filepath.Join(p.dir, v.Name)
		if v.HostPath != nil {
			folder = p.kubelet.hostPath(p.node, v.HostPath.Path)
		}
		folders[v.Name] = folder
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return nil, err
		}
		if v.Projected == nil {
			continue
		}
		for _, source := range v.Projected.Sources {
			if source.ServiceAccountToken == nil {
				return nil, fmt.Errorf("pod %s: volume %s: only tokens are projected here", p.object.Name, v.Name)
			}
			if err := p.writeToken(ctx, folder, *source.ServiceAccountToken); err != nil {
				return nil, err
			}
		}
	}
	return folders, p.writeConfigMaps(ctx)
}

// writeToken has a token made that is bound to the Pod, and with it to the node.
func (p *containerPod) writeToken(ctx context.Context, folder string, projection corev1.ServiceAccountTokenProjection) error {
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: projection.ExpirationSeconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: p.object.Name, UID: p.object.UID},
	}}
	if projection.Audience != "" {
		request.Spec.Audiences = []string{projection.Audience}
	}
	accounts := p.kubelet.cluster.kube.Client.CoreV1().ServiceAccounts(p.object.Namespace)
	token, err := accounts.CreateToken(ctx, p.object.Spec.ServiceAccountName, request, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	return writeFiles(folder, map[string]string{projection.Path: token.Status.Token})
}

// writeConfigMaps brings the volumes of ConfigMaps up to date.
func (p *containerPod) writeConfigMaps(ctx context.Context) error {
	for _, v := range p.object.Spec.Volumes {
		if v.ConfigMap == nil {
			continue
		}
		m, err := p.kubelet.cluster.kube.Client.CoreV1().ConfigMaps(p.object.Namespace).Get(ctx, v.ConfigMap.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) && v.ConfigMap.Optional != nil && *v.ConfigMap.Optional {
			continue
		}
		if err != nil {
			return err
		}
		if err := writeFiles(filepath.Join(p.dir, v.Name), m.Data); err != nil {
			return err
		}
	}
	return nil
}

// writeFiles replaces files whose content is another.
func writeFiles(folder string, content map[string]string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	for name, text := range content {
		path := filepath.Join(folder, name)
		if old, err := os.ReadFile(path); err == nil && string(old) == text {
			continue
		}
		if err := errors.Join(os.WriteFile(path+".tmp", []byte(text), 0o644), os.Rename(path+".tmp", path)); err != nil {
			return err
		}
	}
	return nil
}

// probe is the readiness probe.
func (p *containerPod) probe(ctx context.Context) error {
	probe := p.spec().ReadinessProbe
	if probe.Exec != nil {
		return p.exec(ctx, probe.Exec.Command)
	}
	get := probe.HTTPGet
	host := get.Host
	if host == "" {
		host = p.host.IPv4.String()
	}
	port := get.Port.IntVal
	for _, named := range p.spec().Ports {
		if named.Name == get.Port.StrVal {
			port = named.ContainerPort
		}
	}
	client := &http.Client{Transport: &http.Transport{DialContext: p.node.DialContext, DisableKeepAlives: true}, Timeout: time.Second}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, strconv.Itoa(int(port)))+get.Path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// exec runs a command in the container's namespaces, with the container's capabilities.
func (p *containerPod) exec(ctx context.Context, command []string) error {
	bounding := "-all"
	for _, c := range p.spec().SecurityContext.Capabilities.Add {
		bounding += ",+" + strings.ToLower(string(c))
	}
	args := []string{"--target", strconv.Itoa(p.process.PID()), "--mount", "--pid", "--net", "--root", "--wd", "--", "setpriv", "--bounding-set", bounding, "--"}
	cmd := exec.CommandContext(ctx, "nsenter", append(args, command...)...)
	cmd.Env = []string{"PATH=" + containerPath}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%q in pod %s: %w: %s", command, p.object.Name, err, out)
	}
	return nil
}

// report writes the Pod's status if it is another.
func (p *containerPod) report(ctx context.Context, ready bool) error {
	if p.process != nil && ready == p.ready {
		return nil
	}
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	now := metav1.Now()
	var conditions []*applycorev1.PodConditionApplyConfiguration
	for _, t := range []corev1.PodConditionType{corev1.PodScheduled, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady} {
		c := applycorev1.PodCondition().WithType(t).WithStatus(corev1.ConditionTrue).WithLastTransitionTime(p.since)
		if t == corev1.ContainersReady || t == corev1.PodReady {
			c = c.WithStatus(status).WithLastTransitionTime(now)
		}
		conditions = append(conditions, c)
	}
	_, err := p.kubelet.cluster.kube.Client.CoreV1().Pods(p.object.Namespace).ApplyStatus(ctx,
		applycorev1.Pod(p.object.Name, p.object.Namespace).WithUID(p.object.UID).WithStatus(applycorev1.PodStatus().
			WithPhase(corev1.PodRunning).WithHostIP(p.node.IPv4.String()).
			WithPodIP(p.host.IPv4.String()).WithPodIPs(podIP(p.host.IPv4), podIP(p.host.IPv6)).
			WithConditions(conditions...)),
		metav1.ApplyOptions{FieldManager: "kubelet", Force: true})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // Deleted since: the next look says so.
	}
	if err == nil {
		p.ready = ready
	}
	return err
}

// end ends the container as a kubelet does: its preStop hook, a request to end, and at the end of the grace period force.
func (p *containerPod) end(ctx context.Context, grace time.Duration) error {
	deadline := time.Now().Add(grace)
	if hook := p.spec().Lifecycle; hook != nil && hook.PreStop != nil {
		ctx, cancel := context.WithDeadline(ctx, deadline)
		err := p.exec(ctx, hook.PreStop.Exec.Command)
		cancel()
		if err != nil {
			p.kubelet.note(err)
		}
	}
	if err := syscall.Kill(p.process.PID(), syscall.SIGTERM); err != nil {
		p.kubelet.note(fmt.Errorf("end pod %s: %w", p.object.Name, err))
	}
	select {
	case <-p.process.Done():
	case <-time.After(max(time.Until(deadline), time.Second)):
		p.kubelet.note(fmt.Errorf("pod %s did not end within its grace period of %s", p.object.Name, grace))
		p.process.Kill()
	case <-ctx.Done():
		p.process.Kill()
	}
	var err error
	if !p.object.Spec.HostNetwork {
		err = p.host.Delete()
	}
	return errors.Join(err, p.kubelet.cluster.kubelets.remove(ctx, p.object.Namespace, p.object.Name, p.object.UID))
}
