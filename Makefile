# kekd: `make demo` shows it, `make test` tests it. Both install what is missing.
#
# How long each part of the tests may take on two cores stands in docs/TESTING.md.

GO       ?= go

# Debian's packages, and a file of each that shows that it is there.
DEBS := softhsm2:/usr/lib/softhsm/libsofthsm2.so opensc:/usr/bin/pkcs11-tool strace:/usr/bin/strace openssh-client:/usr/bin/ssh-keygen
# Only to generate code again; what is generated is committed.
PROTO_DEBS := protobuf-compiler:/usr/bin/protoc
# Only to check the models: spin writes a program in C for each.
MODEL_DEBS := spin:/usr/bin/spin gcc:/usr/bin/gcc libc6-dev:/usr/include/stdio.h

# The tools are pinned, and run through the module proxy: nothing has to be on the PATH.
STATICCHECK := $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.7.0
GOVULNCHECK := $(GO) run golang.org/x/vuln/cmd/govulncheck@v1.3.0
PROTOC_GO   := google.golang.org/protobuf/cmd/protoc-gen-go
PROTOC_GRPC := google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.6.2
PROTOC_VT   := github.com/planetscale/vtprotobuf/cmd/protoc-gen-go-vtproto

# What many goroutines share, in packages that are quick under the race detector: together a minute on
# two cores. Of the journal's tests, those whose files are small. make nightly runs it over everything.
RACE         := ./hierarchy/custody ./hierarchy/quota ./cluster/view ./cluster/lease ./cluster/peer ./cmd/kekd ./unix-socket-api ./unix-socket-api/client ./unix-socket-api/vtcodec
RACE_JOURNAL := ^Test(Journal|Nothing|Append|Position|Second|Closed|Wait|Follow|SlowFollower|Checkpoints|Signer|Only|Close)

.PHONY: all build deps demo test bench nightly model recheck check race generate generated clean

all: build

build:
	$(GO) build -o bin/kekd ./cmd/kekd
	$(GO) build -o bin/kekctl ./cmd/kekctl

deps:
	@scripts/install-debs $(DEBS)

demo: deps build
	scripts/demo

test: deps build
	$(GO) test -timeout 9m ./...

bench: deps build
	scripts/bench
	scripts/bench -cluster

# Loops that are too long for `make test`, the race detector over everything, and the fuzz targets; some three to four hours. SEED=N runs the moments of another night again.
nightly: deps build
	@scripts/install-debs $(MODEL_DEBS)
	GO="$(GO)" scripts/nightly

# The rules of leases, fences and marks in all states that there are, and without each of them: cluster/lease/model.
model:
	@scripts/install-debs $(MODEL_DEBS)
	@scripts/model

# Judges a history that a test has saved once more: `make recheck FILE=...`.
recheck:
	@$(GO) run ./softhsm-tests/history/recheck "$(FILE)"

# Leaves out one rule of leases and fences after the other, and prints what the simulation says to it.
mutants:
	GO="$(GO)" scripts/mutants

check:
	@unformatted=$$(git ls-files '*.go' | xargs gofmt -l); [ -z "$$unformatted" ] || { echo "gofmt -w these:"; echo "$$unformatted"; exit 1; }
	$(GO) vet ./...
	$(STATICCHECK) ./...
	@$(MAKE) --no-print-directory generated race
	@scripts/vulnerabilities "$(GOVULNCHECK)"

race:
	$(GO) test -race -timeout 5m $(RACE)
	$(GO) test -race -timeout 5m -run '$(RACE_JOURNAL)' ./hierarchy/audit

generate:
	@scripts/install-debs $(PROTO_DEBS)
	GO="$(GO)" PROTOC_GO="$(PROTOC_GO)" PROTOC_GRPC="$(PROTOC_GRPC)" PROTOC_VT="$(PROTOC_VT)" scripts/generate .

# What is committed is what the .proto files give.
generated:
	@scripts/install-debs $(PROTO_DEBS)
	@GO="$(GO)" PROTOC_GO="$(PROTOC_GO)" PROTOC_GRPC="$(PROTOC_GRPC)" PROTOC_VT="$(PROTOC_VT)" scripts/generate --check .

clean:
	rm -rf bin
