package rabbit

import (
	"context"
	"fmt"
)

// Compare returns what is missing at the broker, by kind and name, and which
// objects have other arguments than the configuration. It changes nothing, but
// its user needs the permission to configure the objects: RabbitMQ compares them
// only for those who might declare them. Only those objects are compared that
// Setup compares.
func Compare(ctx context.Context, cfg Config) (missing []string, differences Differences, err error) {
	s, err := openAny(ctx, cfg, "status")
	if err != nil {
		return nil, nil, err
	}
	defer s.close()
	err = s.bounded(ctx, func() error {
		absent, err := s.missing(cfg.Topology, everyObject)
		if err != nil {
			return err
		}
		isMissing := make(map[string]bool)
		for _, o := range absent {
			isMissing[o.name] = true
			missing = append(missing, o.String())
		}
		for _, o := range cfg.Topology.compared(isMissing) {
			if isMissing[o.name] {
				continue
			}
			arguments, err := s.compare(o)
			if err != nil {
				return fmt.Errorf("compare %s: %w", o, err)
			}
			if len(arguments) > 0 {
				differences = append(differences, Difference{o.kind, o.name, arguments})
			}
		}
		return nil
	})
	if isRefused(err) {
		err = fmt.Errorf("%w: %w", ErrForbidden, err)
	}
	return missing, differences, err
}
