// Command cluster is a whole Kubernetes control plane and node in one program: the first argument names the component,
// and the rest are that component's own arguments.
//
// Kubernetes, etcd and CoreDNS publish their commands as Go packages. Linking them into one program makes a cluster out
// of a single build from the module proxy: no container registry, no downloaded binaries, and the versions in go.sum.
//
// It decides nothing itself. Who starts which component with which flags is in tests/src/cluster.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	// What the components' own commands register: log format, and metrics of client and version.
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"

	// The plugins that cluster DNS consists of.
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
)

var commands = map[string]func() *cobra.Command{
	"kube-apiserver":          apiserver.NewAPIServerCommand,
	"kube-controller-manager": controllermanager.NewControllerManagerCommand,
	"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
	"kubelet":                 func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
	"kube-proxy":              func() *cobra.Command { return proxy.NewProxyCommand() },
	"kubectl":                 kubectl.NewDefaultKubectlCommand,
}

// plugins is the order in which a query meets them.
var plugins = []string{"bind", "ready", "errors", "cache", "kubernetes"}

func main() {
	// A symbolic link named after a component is that component, as with k3s: `kubectl` then works by its name.
	name, arguments := filepath.Base(os.Args[0]), os.Args[1:]
	if _, known := commands[name]; !known {
		if len(os.Args) < 2 {
			fmt.Fprintln(os.Stderr, "usage: cluster COMPONENT [ARGUMENT]...")
			os.Exit(2)
		}
		name, arguments = os.Args[1], os.Args[2:]
	}
	os.Args = append([]string{name}, arguments...)

	switch name {
	case "etcd":
		etcdmain.Main(os.Args)
	case "coredns":
		dnsserver.Directives = plugins
		coremain.Run()
	default:
		command, known := commands[name]
		if !known {
			fmt.Fprintf(os.Stderr, "cluster: no component %q\n", name)
			os.Exit(2)
		}
		os.Exit(cli.Run(command()))
	}
}
