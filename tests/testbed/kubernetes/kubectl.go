package main

import (
	"github.com/spf13/cobra"
	"k8s.io/kubectl/pkg/cmd"
)

func kubectl() *cobra.Command {
	return cmd.NewDefaultKubectlCommand()
}
