// Command kubernetes is several Kubernetes programs in one binary. The name it
// is started by (a link, or the first argument) says which one it is, so that
// their common packages are compiled and linked once.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
)

// programs holds a constructor for each program. To add one,
// add a file beside apiserver.go and a line here.
var programs = map[string]func() *cobra.Command{
	"kube-apiserver":          apiServer,
	"kube-controller-manager": controllerManager,
	"kube-scheduler":          scheduler,
	"kubectl":                 kubectl,
	"kubelet":                 kubelet,
}

func main() {
	name := filepath.Base(os.Args[0])
	program, known := programs[name]
	if !known && len(os.Args) > 1 {
		name = os.Args[1]
		if program, known = programs[name]; known {
			os.Args = os.Args[1:]
		}
	}
	if !known {
		fmt.Fprintf(os.Stderr, "start this as, or give as first argument, one of: %s\n", names())
		os.Exit(2)
	}
	os.Exit(cli.Run(program()))
}

func names() string {
	var all []string
	for name := range programs {
		all = append(all, name)
	}
	sort.Strings(all)
	return strings.Join(all, ", ")
}
