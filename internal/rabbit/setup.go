package rabbit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/wire"
)

// Setup declares all objects at the broker, binds them, and returns those that
// did not exist before, also with an error. It changes no existing object. The error is
// [Differences] if an object has other arguments, and [ErrForbidden] if the
// user lacks a permission. It declares nothing, and the error is [ErrAway], if
// something is missing and fewer nodes answer than are to keep it. If the Topology's Queue is not the default one, only
// the arguments of that queue are compared: the sizes of other objects are not
// what the caller asked about.
func Setup(ctx context.Context, cfg Config) (created []string, err error) {
	s, err := openAny(ctx, cfg, "setup")
	if err != nil {
		return nil, err
	}
	defer s.close()
	var missing []object
	err = s.bounded(ctx, func() error {
		missing, err = s.missing(cfg.Topology, everyObject)
		return err
	})
	if err == nil && len(missing) > 0 {
		err = enough(ctx, cfg)
	}
	if err == nil {
		err = s.bounded(ctx, func() error {
			created, err = s.setup(cfg.Topology, missing)
			return err
		})
	}
	if isRefused(err) {
		err = fmt.Errorf("%w: %w", ErrForbidden, err)
	}
	return created, advise(err)
}

// ErrAway means that too few nodes of a cluster answer.
var ErrAway = errors.New("too few nodes answer")

// enough returns an error if fewer nodes answer than are to keep each queue: a
// queue has no more replicas than there were nodes when it was declared.
func enough(ctx context.Context, cfg Config) error {
	urls := cfg.urls()
	errs := make([]error, len(urls))
	var asking sync.WaitGroup
	for i, url := range urls {
		asking.Go(func() {
			s, err := open(ctx, cfg, url, "setup")
			if err == nil {
				s.close()
				return
			}
			errs[i] = fmt.Errorf("connect to %s: %w", host(url), err)
		})
	}
	asking.Wait()
	away := slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if n := len(urls) - len(away); n < min(int(cfg.Topology.Replicas), len(urls)) {
		return fmt.Errorf("%w to declare what is missing: %d of %d, and --%s asks for %d: start the others, or ask for fewer: %w",
			ErrAway, n, len(urls), replicasFlag, cfg.Topology.Replicas, errors.Join(away...))
	}
	return nil
}

// ErrForbidden means that the user lacks a permission.
var ErrForbidden = errors.New("the user lacks a permission at the broker")

// Differences are the existing objects whose arguments are not those asked for.
type Differences []Difference

// A Difference says how an existing object differs from what was asked for.
type Difference struct {
	Kind      string // exchange or queue
	Name      string
	Arguments []Argument
}

// An Argument is an argument of an object that differs from what was asked for.
type Argument struct {
	Name      string // the broker's name, such as x-max-length
	Is, Asked string // "" for none
	Flag      string // the flag that sets it; "" if there is none
}

// Keep returns the value of Flag that keeps the argument as it is.
func (a Argument) Keep() string {
	n, err := strconv.ParseInt(a.Is, 10, 64)
	switch {
	case err == nil && a.Flag == maxTasksFlag:
		return strconv.FormatInt(n+beyondLimit, 10)
	case err == nil && a.Flag == deliveryLimitFlag && n > spareDeliveries:
		return strconv.FormatInt(n-spareDeliveries, 10)
	}
	return a.Is // an earlier version's delivery limit
}

func (d Differences) Error() string {
	var all []string
	for _, o := range d {
		for _, a := range o.Arguments {
			all = append(all, fmt.Sprintf("the %s %s has %s %q, not %q", o.Kind, o.Name, a.Name, a.Is, a.Asked))
		}
	}
	return strings.Join(all, "; ")
}

// Sizes reports whether only sizes differ. Everything works with other sizes.
func (d Differences) Sizes() bool {
	for _, o := range d {
		if !o.Sizes() {
			return false
		}
	}
	return true
}

// Sizes reports whether only sizes that have a flag differ.
func (d Difference) Sizes() bool {
	for _, a := range d.Arguments {
		if a.Flag == "" || a.Is == "" {
			return false
		}
	}
	return true
}

// Replicas says on which nodes of a cluster the stream of results is kept.
type Replicas struct {
	With, Without []string // hosts of the URLs
}

// LookForReplicas asks each node of cfg for its replica of the stream of
// results. The queues were declared with as many, or later added to the same
// nodes, if somebody followed the commands that `revq setup` names. The error
// says which nodes could not be asked.
func LookForReplicas(ctx context.Context, cfg Config) (r Replicas, err error) {
	var errs []error
	for _, url := range cfg.urls() {
		switch has, err := hasReplica(ctx, cfg, url); {
		case err != nil:
			errs = append(errs, fmt.Errorf("ask %s for its replica: %w", host(url), err))
		case has:
			r.With = append(r.With, host(url))
		default:
			r.Without = append(r.Without, host(url))
		}
	}
	return r, errors.Join(errs...)
}

// hasReplica begins to read the stream: only a node with a replica permits that.
func hasReplica(ctx context.Context, cfg Config, url string) (bool, error) {
	s, err := open(ctx, cfg, url, "setup")
	if err != nil {
		return false, err
	}
	defer s.close()
	deliveries, err := s.consume(ctx, s.ch, ResultsQueue, "revq-setup", 1, amqp.Table{offsetHeader: "next"})
	var refused *amqp.Error
	if errors.As(err, &refused) && strings.Contains(refused.Reason, "replica on the local node") {
		return false, nil
	}
	if err == nil {
		drop(deliveries)
	}
	return err == nil, err
}

// setup declares and binds all objects, some of which are missing.
func (s *session) setup(t Topology, missing []object) (created []string, err error) {
	isMissing := make(map[string]bool)
	for _, o := range missing {
		isMissing[o.name] = true
	}
	objects := t.compared(isMissing)
	arguments := make([][]Argument, len(objects))
	declared := make([]bool, len(objects))
	err = s.each(objects, func(_ *amqp.Channel, i int, o object) (err error) {
		if arguments[i], err = s.compare(o); err != nil {
			return fmt.Errorf("declare %s: %w", o, err)
		}
		declared[i] = true
		return nil
	})
	var differences Differences
	for i, o := range objects {
		switch {
		case len(arguments[i]) > 0:
			differences = append(differences, Difference{o.kind, o.name, arguments[i]})
		case declared[i] && isMissing[o.name]:
			created = append(created, o.String())
		}
	}
	if err != nil {
		return created, err
	}
	if slices.ContainsFunc(differences, func(d Difference) bool { return d.Kind == "exchange" }) {
		return created, differences // the queues cannot be bound to it
	}
	if err := s.onChannel(func(ch *amqp.Channel) error { return bind(ch, t) }); err != nil {
		return created, err
	}
	if len(differences) > 0 {
		return created, differences
	}
	return created, nil
}

// compared returns the objects whose arguments are what the caller asked about,
// and those that are missing.
func (t Topology) compared(isMissing map[string]bool) []object {
	return slices.DeleteFunc(t.objects(), func(o object) bool {
		return t.Queue != wire.DefaultQueue && !isMissing[o.name] && o.name != TasksQueueOf(t.Queue)
	})
}

// compare declares an object. If it exists with other arguments, compare
// returns the differences. The broker names one argument at a time, so compare
// declares again with that argument as it is, until the broker does not object.
func (s *session) compare(o object) (differences []Argument, err error) {
	args := maps.Clone(o.args)
	seen := make(map[string]bool)
	for {
		err := s.onChannel(func(ch *amqp.Channel) error { return o.declare(ch, args) })
		a, differs := differing(err)
		if !differs && len(differences) > 0 {
			return differences, nil // the broker agrees, or refuses its own arguments
		}
		if !differs {
			return nil, err
		}
		if a.Name == amqp.QueueTypeArg {
			a.Is = cmp.Or(a.Is, amqp.QueueTypeClassic)
			return []Argument{a}, nil // the other differences follow from this one
		}
		if seen[a.Name] {
			return differences, nil // the broker does not accept its own value
		}
		seen[a.Name] = true
		a.Flag = o.flags[a.Name]
		if earlier, ok := o.earlier[a.Name]; !slices.Contains(placement, a.Name) && (!ok || a.Is != earlier) {
			differences = append(differences, a)
		}
		if !strings.HasPrefix(a.Name, "x-") { // such as durable
			return differences, nil
		}
		n, err := strconv.ParseInt(a.Is, 10, 64)
		switch {
		case a.Is == "":
			delete(args, a.Name)
		case err == nil:
			args[a.Name] = n
		default:
			args[a.Name] = a.Is
		}
	}
}

// inequivalent matches RabbitMQ's message that an argument differs.
var inequivalent = regexp.MustCompile(`inequivalent arg '([^']+)' for .*: ` +
	`received (?:none|(?:the value )?'(.*?)'(?: of type '\w+')?) ` +
	`but current is (?:none|(?:the value )?'(.*?)'(?: of type '\w+')?)$`)

// differing returns the argument that the broker objects to.
func differing(err error) (Argument, bool) {
	var refused *amqp.Error
	if !errors.As(err, &refused) || refused.Code != amqp.PreconditionFailed {
		return Argument{}, false
	}
	found := inequivalent.FindStringSubmatch(refused.Reason)
	if found == nil {
		return Argument{}, false
	}
	return Argument{Name: found[1], Asked: found[2], Is: found[3]}, true
}
