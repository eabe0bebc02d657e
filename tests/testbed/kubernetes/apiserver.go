package main

import (
	"github.com/spf13/cobra"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func apiServer() *cobra.Command {
	return app.NewAPIServerCommand()
}
