package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/kekd/kekd/unix-socket-api/client"
)

type metricsOut struct {
	Metrics string `json:"metrics"` // in Prometheus' text format
}

func (a *app) metricsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "metrics",
		Short: "Print this node's metrics, in Prometheus' text format",
		Long: `Print this node's metrics, in Prometheus' text format. It is what
'curl --unix-socket /run/kekd/admin.sock http://localhost/metrics' prints.`,
		Args: arguments(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), a.timeout)
			defer cancel()
			text, err := client.Metrics(ctx, a.adminSockets()...)
			if err != nil {
				return a.callFault(err)
			}
			if a.output == "json" {
				return a.print(metricsOut{string(text)}, nil)
			}
			return a.write(text)
		},
	}
}
