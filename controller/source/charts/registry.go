package charts

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/Masterminds/semver/v3"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"

	"shoal.dev/shoal/controller/source"
	"shoal.dev/shoal/controller/source/charts/archive"
)

// Media types of Helm in a registry.
const (
	configType = "application/vnd.cncf.helm.config.v1+json"
	chartType  = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
	oldType    = "application/tar+gzip" // before Helm 3.7
)

const (
	maxManifest = 4 << 20
	maxTags     = 50_000
)

// repository is a repository of a registry.
type repository struct {
	c    *Client
	repo *remote.Repository
	host string
}

// fromRegistry gets a chart from oci://host/path, with :tag or @digest in it, or the version.
func (c *Client) fromRegistry(ctx context.Context, address, version string) (source.Chart, error) {
	ref, err := registry.ParseReference(strings.TrimSuffix(address[len("oci://"):], "/"))
	if err != nil {
		return source.Chart{}, fmt.Errorf("%s is no address of a chart in a registry, such as oci://registry.example.com/charts/web", redact(address))
	}
	r := repository{c: c, host: ref.Registry, repo: &remote.Repository{
		Client:           &auth.Client{Client: &c.http.Client, Credential: c.registryCredential, Cache: auth.NewCache(), Header: http.Header{"User-Agent": {"shoal"}}},
		Reference:        ref,
		PlainHTTP:        c.http.plain[canonical(ref.Registry)],
		MaxMetadataBytes: maxManifest,
	}}
	what := ref.Reference
	if what == "" {
		if what, err = r.tag(ctx, version); err != nil {
			return source.Chart{}, err
		}
	}
	data, err := r.chart(ctx, what)
	var missing notFoundError
	if errors.As(err, &missing) {
		return source.Chart{}, r.unknown(ctx, what, missing)
	}
	if err != nil {
		return source.Chart{}, err
	}
	return chartOf(data, version, "")
}

// tag returns the tag of a version, or of the highest version in a range. A tag cannot hold "+": there it is "_".
func (r repository) tag(ctx context.Context, version string) (string, error) {
	if _, err := semver.StrictNewVersion(strings.TrimPrefix(version, "v")); err == nil {
		return strings.ReplaceAll(version, "+", "_"), nil // without a list, which some registries give to nobody
	}
	if _, err := constraint(version); err != nil {
		return "", err
	}
	versions, err := r.versions(ctx)
	if err != nil {
		return "", err
	}
	v, err := pick(versions, version)
	return strings.ReplaceAll(v, "+", "_"), err
}

// versions are the tags that are versions; others, such as latest or 1.2, move.
func (r repository) versions(ctx context.Context) ([]string, error) {
	var tags []string
	err := r.c.retry(ctx, r.host, func(ctx context.Context) error {
		tags = tags[:0]
		return r.repo.Tags(ctx, "", func(page []string) error {
			if tags = append(tags, page...); len(tags) > maxTags {
				return fmt.Errorf("there are more than %d tags: name a version", maxTags)
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("list tags: %w", err)
	}
	var versions []string
	for _, t := range tags {
		v := strings.ReplaceAll(t, "_", "+")
		if _, err := semver.StrictNewVersion(strings.TrimPrefix(v, "v")); err == nil {
			versions = append(versions, v)
		}
	}
	return versions, nil
}

// unknown says which versions there are instead.
func (r repository) unknown(ctx context.Context, what string, missing error) error {
	versions, err := r.versions(ctx)
	if known := parsed(versions); err == nil && len(known) > 0 {
		return fmt.Errorf("%s: %w: the newest versions are %s", what, missing, newest(known))
	}
	return fmt.Errorf("%s: %w", what, missing)
}

// chart returns the archive that a tag or digest leads to. Every step verifies the digest that the step before states.
func (r repository) chart(ctx context.Context, what string) ([]byte, error) {
	layer, err := r.layer(ctx, what)
	if err != nil {
		return nil, err
	}
	get := func() (data []byte, err error) {
		err = r.c.retry(ctx, r.host, func(ctx context.Context) error {
			rc, err := r.repo.Blobs().Fetch(ctx, layer)
			if err != nil {
				return err
			}
			defer rc.Close()
			data, err = content.ReadAll(rc, layer)
			return err
		})
		return data, err
	}
	digest, ok := strings.CutPrefix(layer.Digest.String(), "sha256:")
	if !ok {
		return get() // verified all the same
	}
	return r.c.cached(digest, get)
}

// layer returns the descriptor of the chart in a manifest.
func (r repository) layer(ctx context.Context, what string) (ocispec.Descriptor, error) {
	var data []byte
	var kind string
	err := r.c.retry(ctx, r.host, func(ctx context.Context) error {
		desc, rc, err := r.repo.Manifests().FetchReference(ctx, what)
		if err != nil {
			return err
		}
		defer rc.Close()
		if desc.Size > maxManifest {
			return fmt.Errorf("the manifest has %d bytes, the limit is %d", desc.Size, maxManifest)
		}
		kind = desc.MediaType
		data, err = content.ReadAll(io.LimitReader(rc, maxManifest+1), desc)
		return err
	})
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("manifest of %s: not valid JSON", what)
	}
	if m.Config.MediaType != configType {
		return ocispec.Descriptor{}, fmt.Errorf("%s is no Helm chart: its type is %q", what, cmp.Or(m.Config.MediaType, kind))
	}
	for _, l := range m.Layers {
		if l.MediaType != chartType && l.MediaType != oldType {
			continue
		}
		if err := l.Digest.Validate(); err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("manifest of %s: digest of the chart is not valid", what)
		}
		if l.Size < 0 || l.Size > archive.MaxPacked {
			return ocispec.Descriptor{}, fmt.Errorf("the archive has %d bytes, the limit is %d", l.Size, archive.MaxPacked)
		}
		return l, nil
	}
	return ocispec.Descriptor{}, fmt.Errorf("%s holds no chart: no layer of its manifest is one", what)
}
