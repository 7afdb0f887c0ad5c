package metrics

const MaxConns = maxConns
