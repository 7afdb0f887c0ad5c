package state

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/kekd/kekd/hierarchy"
	"github.com/kekd/kekd/hierarchy/commandpb"
)

// Each command that there is belongs to the level that clusters are made with, so that a state of the level
// before refuses them all.
func TestACommandAboveTheLevelIsRefused(t *testing.T) {
	bodies := (&commandpb.Command{}).ProtoReflect().Descriptor().Oneofs().ByName("body").Fields()
	for i := range bodies.Len() {
		name := bodies.Get(i).Name()
		if name == "init_cluster" {
			continue // it makes the cluster, at level 1
		}
		c := &commandpb.Command{Format: Format, Id: []byte("0123456789abcdef")}
		c.ProtoReflect().Set(bodies.Get(i), protoreflect.ValueOfMessage(c.ProtoReflect().NewField(bodies.Get(i)).Message()))
		if level := LevelOf(c); level < 1 || level > Level {
			t.Errorf("%s is of level %d, this version knows %d", name, level, Level)
		}
		d := New().draft()
		d.cluster = hierarchy.ClusterID{ID: hierarchy.ID{1}}
		for d.level = range LevelOf(c) {
			next, res := Apply(d.State, Meta{Index: 1}, c)
			if !errors.Is(res.Err, hierarchy.ErrFailedPrecondition) || !strings.Contains(res.Err.Error(), "upgrade") {
				t.Errorf("%s at level %d: got error %v", name, d.level, res.Err)
			}
			if next.index != 1 || *next.sum == *d.sum && remembered(c) {
				t.Errorf("%s at level %d: the refusal is not in the log's state", name, d.level)
			}
		}
	}
}

func TestTheLevelIsRaised(t *testing.T) {
	d := New().draft()
	before := d.Hash()
	if err := d.raiseFeatureLevel(&commandpb.RaiseFeatureLevel{Level: Level}); err != nil || d.FeatureLevel() != Level {
		t.Errorf("got error %v, and the level is %d", err, d.FeatureLevel())
	}
	if d.Hash() == before {
		t.Error("the hash does not cover the level")
	}
}
