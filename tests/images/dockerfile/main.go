// Says what BuildKit, which docker builds images with, makes of a Dockerfile, without building it: the configuration of
// the image for each platform, and what its linter finds.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerui"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Builds run on this platform.
const buildPlatform = "linux/amd64"

// What is printed for a platform, as JSON.
type finding struct {
	Platform string               `json:"platform"`
	Config   ocispecs.ImageConfig `json:"config"`
	Warnings []string             `json:"warnings"`
	Bases    []string             `json:"bases"`
}

// An image of every name, without a registry: nothing is known of it.
type unknown struct{ bases []string }

func (resolver *unknown) ResolveImageConfig(_ context.Context, name string, opt sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	platform := platforms.MustParse(buildPlatform)
	if opt.ImageOpt != nil && opt.ImageOpt.Platform != nil {
		platform = *opt.ImageOpt.Platform
	}
	resolver.bases = append(resolver.bases, name+" for "+platforms.Format(platform))
	config, err := json.Marshal(ocispecs.Image{Platform: platform})
	return name, "", config, err
}

func main() {
	if len(os.Args) < 3 {
		log.Fatal("usage: dockerfile FILE PLATFORM...")
	}
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	var findings []finding
	for _, name := range os.Args[2:] {
		found, err := look(text, name)
		if err != nil {
			log.Fatalf("%s for %s: %v", os.Args[1], name, err)
		}
		findings = append(findings, *found)
	}
	if err := json.NewEncoder(os.Stdout).Encode(findings); err != nil {
		log.Fatal(err)
	}
}

func look(text []byte, name string) (*finding, error) {
	platform, err := platforms.Parse(name)
	if err != nil {
		return nil, err
	}
	found := finding{Platform: name, Warnings: []string{}}
	resolver := &unknown{}
	capabilities := pb.Caps.CapSet(pb.Caps.All())
	state, image, _, _, err := dockerfile2llb.Dockerfile2LLB(context.Background(), text, dockerfile2llb.ConvertOpt{
		Config: dockerui.Config{
			BuildPlatforms: []ocispecs.Platform{platforms.MustParse(buildPlatform)},
			// Checks that a linter's user has to ask for are asked for.
			LinterConfig: &linter.Config{ExperimentalAll: true},
		},
		TargetPlatform: &platform,
		MetaResolver:   resolver,
		LLBCaps:        &capabilities,
		Warn: func(rule, _, _, message string, location []parser.Range) {
			line := 0
			if len(location) > 0 {
				line = location[0].Start.Line
			}
			found.Warnings = append(found.Warnings, fmt.Sprintf("line %d: %s: %s", line, rule, message))
		},
	})
	if err != nil {
		return nil, err
	}
	// The steps, which would be sent to a builder.
	if _, err := state.Marshal(context.Background(), llb.Platform(platform)); err != nil {
		return nil, err
	}
	found.Config = image.Config.ImageConfig
	found.Bases = resolver.bases
	return &found, nil
}
