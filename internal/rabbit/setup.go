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

	amqp "github.com/rabbitmq/amqp091-go"
)

// Setup declares all objects at the broker and binds them, and returns those
// that were not there before. It changes nothing that exists: the error is
// [Differences] if something has other arguments, and [ErrForbidden] if the
// user may not do what is needed.
func Setup(ctx context.Context, cfg Config) (created []string, err error) {
	s, err := openAny(ctx, cfg, "setup")
	if err != nil {
		return nil, err
	}
	defer s.close()
	err = s.bounded(ctx, func() error {
		created, err = s.setup(cfg.Topology)
		return err
	})
	if isRefused(err) {
		err = fmt.Errorf("%w: %w", ErrForbidden, err)
	}
	return created, err
}

// ErrForbidden means that the user lacks a permission.
var ErrForbidden = errors.New("the user lacks a permission at the broker")

// Differences are the objects that exist and are not as they were to be.
type Differences []Difference

// A Difference is what an object has and was not to have.
type Difference struct {
	Kind      string // exchange or queue
	Name      string
	Arguments []Argument
}

// An Argument is what an object was declared with.
type Argument struct {
	Name      string // as the broker calls it, such as x-max-length
	Is, Asked string // "" for none
	Flag      string // that sets it; "" if none does
}

// Keep returns the value of Flag with which the argument is as it is.
func (a Argument) Keep() string {
	n, err := strconv.ParseInt(a.Is, 10, 64)
	if err != nil || a.Flag != maxTasksFlag {
		return a.Is
	}
	return strconv.FormatInt(n+beyondLimit, 10)
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

// Sizes reports whether only sizes differ, with which everything works.
func (d Differences) Sizes() bool {
	for _, o := range d {
		if !o.Sizes() {
			return false
		}
	}
	return true
}

// Sizes reports whether only sizes differ, which flags can name.
func (d Difference) Sizes() bool {
	for _, a := range d.Arguments {
		if a.Flag == "" || a.Is == "" {
			return false
		}
	}
	return true
}

// setup declares and binds all objects.
func (s *session) setup(t Topology) (created []string, err error) {
	missing, err := s.missing(t, everyObject)
	if err != nil {
		return nil, err
	}
	isMissing := make(map[string]bool)
	for _, o := range missing {
		isMissing[o.name] = true
	}
	var differences Differences
	for _, o := range t.objects() {
		arguments, err := s.compare(o)
		switch {
		case err != nil:
			return created, fmt.Errorf("declare %s: %w", o, err)
		case len(arguments) > 0:
			differences = append(differences, Difference{o.kind, o.name, arguments})
		case isMissing[o.name]:
			created = append(created, o.String())
		}
	}
	if slices.ContainsFunc(differences, func(d Difference) bool { return d.Kind == "exchange" }) {
		return created, differences // what is to be bound to it cannot be
	}
	if err := s.onChannel(func(ch *amqp.Channel) error { return bind(ch, t) }); err != nil {
		return created, err
	}
	if len(differences) > 0 {
		return created, differences
	}
	return created, nil
}

// compare declares an object, and returns what differs if it exists. The broker
// names one argument at a time: that one is then left as it is, until the
// broker has no more objections.
func (s *session) compare(o object) (differences []Argument, err error) {
	args := maps.Clone(o.args)
	seen := make(map[string]bool)
	for {
		err := s.onChannel(func(ch *amqp.Channel) error { return o.declare(ch, args) })
		a, differs := differing(err)
		if !differs && len(differences) > 0 {
			return differences, nil // agreed, or what is there cannot be asked for
		}
		if !differs {
			return nil, err
		}
		if a.Name == amqp.QueueTypeArg {
			a.Is = cmp.Or(a.Is, amqp.QueueTypeClassic)
			return []Argument{a}, nil // all others follow from it
		}
		if seen[a.Name] {
			return differences, nil // the broker does not take what it has
		}
		seen[a.Name] = true
		a.Flag = o.flags[a.Name]
		differences = append(differences, a)
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

// inequivalent is how RabbitMQ says that an argument differs.
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
