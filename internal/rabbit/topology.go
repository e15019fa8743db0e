package rabbit

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/setting"
	"github.com/revq/revq/internal/task"
	"github.com/revq/revq/internal/wire"
)

// The objects at the broker, and the keys that lead to them. They are the same
// for every installation: use virtual hosts to run several on one broker.
const (
	Exchange     = "revq"         // direct; everything is published here
	TasksQueue   = "revq.tasks"   // quorum; the API writes, workers read; see TasksQueueOf
	DeadQueue    = "revq.dead"    // quorum; dead letters
	ResultsQueue = "revq.results" // stream; workers write, sockets read

	// MarksExchange leads to the stream of results. A user who may write only
	// to it can write marks but no results: each message in a stream names
	// the exchange that it was published to.
	MarksExchange = "revq.marks" // fanout; sockets write

	tasksKey   = "tasks"
	deadKey    = "dead"
	resultsKey = "results"
)

// TasksQueueOf returns the name at the broker of the queue of tasks called name.
// The default queue, which is older than the others, has the short name.
func TasksQueueOf(name string) string { return withQueue(TasksQueue, name) }

func tasksKeyOf(name string) string { return withQueue(tasksKey, name) }

func withQueue(prefix, name string) string {
	if name == wire.DefaultQueue || name == "" {
		return prefix
	}
	return prefix + "." + name
}

// queueOf returns the name of the queue of tasks that is called tasksQueue at
// the broker, and "" if it is another object.
func queueOf(tasksQueue string) string {
	if tasksQueue == TasksQueue {
		return wire.DefaultQueue
	}
	name, ok := strings.CutPrefix(tasksQueue, TasksQueue+".")
	if !ok || wire.CheckQueue(name) != nil {
		return ""
	}
	return name
}

// Topology has the sizes of the objects at the broker. An object keeps the
// sizes that it was declared with: to change them, delete the object and
// declare it again.
type Topology struct {
	// Queue is the name of the queue of tasks that a consumer takes tasks from,
	// that a setup declares, and that MaxTasks and DeliveryLimit are for.
	// Default wire.DefaultQueue. That one is declared in any case, with the
	// default sizes if this is another one.
	Queue string

	// MaxTasks is how many tasks may wait; the broker refuses more. Default
	// 1,000,000: minutes of work for fast workers, and a few GB at most if
	// texts are short.
	MaxTasks int64

	// DeliveryLimit is how often a task is delivered whose workers die or lose
	// their connection. The broker delivers it once more, for a worker to give
	// it up. If that worker is lost, too, and so are some more, the broker makes
	// the task a dead letter itself; see spareDeliveries. Workers count failed
	// attempts. Default task.DeliveryLimit.
	DeliveryLimit int64

	// Replicas is on how many nodes of a cluster each queue is declared, at most
	// as many as there are. It matters only for objects that do not exist yet.
	// Default 3: two of three survive the loss of one, and more replicas make
	// everything slower.
	Replicas int64

	// ResultsMaxAge is how long results are kept for listeners that resume,
	// as a number and a unit of Y, M, D, h, m, s. Default 24h.
	ResultsMaxAge string

	// ResultsMaxBytes bounds the results that are kept, whatever their age.
	// Default 1 GiB.
	ResultsMaxBytes int64

	// ResultsSegmentBytes is the size of the files that the broker deletes as
	// a whole when results are too old or too many. Default 16 MiB: with the
	// broker's own 500 MB, only one or two files would fit into
	// ResultsMaxBytes.
	ResultsSegmentBytes int64
}

// DefaultTopology returns the default sizes.
func DefaultTopology() Topology {
	return Topology{
		Queue:               wire.DefaultQueue,
		MaxTasks:            1_000_000,
		DeliveryLimit:       task.DeliveryLimit,
		Replicas:            3,
		ResultsMaxAge:       "24h",
		ResultsMaxBytes:     1 << 30,
		ResultsSegmentBytes: 16 << 20,
	}
}

// The flags that set the sizes, and the argument that amqp091-go does not name.
const (
	maxTasksFlag      = "max-tasks"
	deliveryLimitFlag = "delivery-limit"
	replicasFlag      = "replicas"
	maxAgeFlag        = "results-max-age"
	maxBytesFlag      = "results-max-bytes"
	segmentBytesFlag  = "results-segment-bytes"

	deliveryLimitArg = "x-delivery-limit"
)

// placement are the arguments that say only where a new queue begins. They are
// not compared with those of an existing one, which may have been declared
// without them.
var placement = []string{"x-quorum-initial-group-size", "x-initial-cluster-size", "x-queue-leader-locator"}

// place adds them to the arguments of a queue. RabbitMQ would put all leaders on
// the node that the queues are declared at.
func (t Topology) place(args amqp.Table) {
	args["x-queue-leader-locator"] = "balanced"
	if args[amqp.QueueTypeArg] == amqp.QueueTypeStream {
		args["x-initial-cluster-size"] = t.Replicas
	} else {
		args["x-quorum-initial-group-size"] = t.Replicas
	}
}

// spareDeliveries is how often the broker delivers a task beyond the delivery
// limit and the one time in which a worker gives it up. A worker can be lost
// with the broker before it does, also several times in a row, and what the
// broker itself gives up while it begins again may be told to nobody. Earlier
// versions declared queues without spare deliveries, which are as good
// otherwise, so setup does not object to them.
const spareDeliveries = 15

// beyondLimit is how many messages a quorum queue takes beyond its x-max-length
// before it refuses more, if they arrive one by one: it checks whether it is
// over the limit, not whether the next message would be.
const beyondLimit = 1

// The bounds of a segment. Smaller ones would make thousands of files, and
// RabbitMQ accepts no larger ones.
const (
	minSegmentBytes = 64 << 10
	maxSegmentBytes = 3_000_000_000
)

// Settings declares the settings of t, which holds the defaults. Check reports
// whether the values fit together.
func (t *Topology) Settings() []setting.Setting {
	age := setting.String(maxAgeFlag, "`AGE` up to which results are kept for listeners that resume, a number and one of s, m, h, D, M, Y", &t.ResultsMaxAge,
		func(age string) error {
			if !maxAge.MatchString(age) {
				return fmt.Errorf("%q is no age: give a number and one of s, m, h, D, M, Y, such as 24h or 7D", age)
			}
			return nil
		})
	age.Pattern = maxAgePattern
	return setting.In("sizes",
		setting.Count(maxTasksFlag, "tasks", "maximum number of `TASKS` that wait; more are answered 503", &t.MaxTasks, 1+beyondLimit, 0),
		setting.Count(deliveryLimitFlag, "deliveries", "maximum number of `DELIVERIES` of a task whose workers die or lose their connection; give workers the same", &t.DeliveryLimit, 1, task.MaxDeliveryLimit),
		setting.Count(replicasFlag, "nodes", "number of `NODES` of a cluster that keep each queue that is missing", &t.Replicas, 1, 0),
		age,
		setting.Count(maxBytesFlag, "bytes", "`BYTES` of results kept, whatever their age", &t.ResultsMaxBytes, minSegmentBytes, 0),
		setting.Count(segmentBytesFlag, "bytes", "`BYTES` of the pieces in which old results are dropped", &t.ResultsSegmentBytes, minSegmentBytes, maxSegmentBytes),
	)
}

// QueueSetting declares the name of the queue of tasks. usage has the word QUEUE
// in backquotes.
func (t *Topology) QueueSetting(usage string) setting.Setting {
	s := setting.String("queue", usage, &t.Queue, wire.CheckQueue)
	s.Pattern = fmt.Sprintf(`[a-z][a-z0-9_-]{0,%d}`, wire.MaxQueueLength-1)
	return s
}

const maxAgePattern = `[1-9][0-9]{0,8}[YMDhms]`

var maxAge = regexp.MustCompile(`^` + maxAgePattern + `$`)

// Check returns an error if the sizes do not fit together.
func (t *Topology) Check() error {
	if t.ResultsSegmentBytes > t.ResultsMaxBytes/2 {
		return fmt.Errorf("--%s %d cannot keep to --%s %d, since only whole segments are dropped: give segments of %d or less",
			segmentBytesFlag, t.ResultsSegmentBytes, maxBytesFlag, t.ResultsMaxBytes, t.ResultsMaxBytes/2)
	}
	return nil
}

type queue struct {
	name, key string // key is the one in Exchange; "" if nothing is published to the queue there
	args      amqp.Table
	flags     map[string]string // the flag that sets an argument, by the argument's name
	earlier   map[string]string // what earlier versions gave an argument that is as good
}

// queues returns the queues in the order in which they are declared: a queue
// comes after those that it refers to.
func (t Topology) queues() []queue {
	all := []queue{
		{name: DeadQueue, key: deadKey, args: amqp.Table{
			amqp.QueueTypeArg: amqp.QueueTypeQuorum,
			// Looking at a dead letter delivers it. RabbitMQ 4 would drop one
			// that was looked at twenty times, and 3 takes no "unlimited".
			deliveryLimitArg: int64(1_000_000_000),
		}},
		{name: ResultsQueue, key: resultsKey, args: amqp.Table{
			amqp.QueueTypeArg:                 amqp.QueueTypeStream,
			amqp.StreamMaxAgeArg:              t.ResultsMaxAge,
			amqp.StreamMaxLenBytesArg:         t.ResultsMaxBytes,
			amqp.StreamMaxSegmentSizeBytesArg: t.ResultsSegmentBytes,
		}, flags: map[string]string{
			amqp.StreamMaxAgeArg:              maxAgeFlag,
			amqp.StreamMaxLenBytesArg:         maxBytesFlag,
			amqp.StreamMaxSegmentSizeBytesArg: segmentBytesFlag,
		}},
	}
	all = append(all, waitQueues()...)
	if defaults := DefaultTopology(); t.Queue != defaults.Queue {
		all = append(all, defaults.tasks())
	}
	all = append(all, t.tasks())
	for _, q := range all {
		t.place(q.args)
	}
	return all
}

// tasks returns the queue of tasks.
func (t Topology) tasks() queue {
	return queue{name: TasksQueueOf(t.Queue), key: tasksKeyOf(t.Queue), args: amqp.Table{
		amqp.QueueTypeArg:     amqp.QueueTypeQuorum,
		amqp.QueueMaxLenArg:   t.MaxTasks - beyondLimit,
		amqp.QueueOverflowArg: amqp.QueueOverflowRejectPublish,
		deliveryLimitArg:      t.DeliveryLimit + spareDeliveries,
		// At least once needs reject-publish: a dead letter leaves the
		// queue only when the dead queue has confirmed it.
		"x-dead-letter-strategy":    "at-least-once",
		"x-dead-letter-exchange":    Exchange,
		"x-dead-letter-routing-key": deadKey,
	}, flags: map[string]string{
		amqp.QueueMaxLenArg: maxTasksFlag,
		deliveryLimitArg:    deliveryLimitFlag,
	}, earlier: map[string]string{
		deliveryLimitArg: strconv.FormatInt(t.DeliveryLimit, 10),
	}}
}

// setupCommand is the command that declares the objects.
func (t Topology) setupCommand() string {
	if t.Queue == wire.DefaultQueue {
		return "revq setup"
	}
	return "revq setup --queue " + t.Queue
}

// ensure checks whether the objects named in uses exist. If one is missing, it
// declares all objects that are missing. Existing objects may have other
// arguments.
//
// A role looks only at the objects that it uses: from RabbitMQ 4.3 on, a look
// needs a permission on the object, and in a cluster it waits for the object's
// leader.
func (s *session) ensure(t Topology, uses []string) error {
	missing, err := s.missing(t, func(o object) bool { return slices.Contains(uses, o.name) })
	if err != nil || len(missing) == 0 {
		return err
	}
	absent := missing[0].name
	if missing, err = s.missing(t, everyObject); err != nil {
		return err
	}
	err = s.each(missing, func(ch *amqp.Channel, _ int, o object) error {
		if err := o.declare(ch, o.args); err != nil {
			return fmt.Errorf("declare %s: %w", o, err)
		}
		return nil
	})
	if err == nil {
		err = s.onChannel(func(ch *amqp.Channel) error { return bind(ch, t) })
	}
	if isRefused(err) {
		return fmt.Errorf("%s does not exist, and this user may not declare it: run `%s` as a user who may: %w", absent, t.setupCommand(), err)
	}
	return err
}

func everyObject(object) bool { return true }

// missing returns the objects that do not exist, among those for which looksAt
// returns true.
func (s *session) missing(t Topology, looksAt func(object) bool) ([]object, error) {
	var missing []object
	for _, o := range t.objects() {
		if !looksAt(o) {
			continue
		}
		there, err := exists(s.onChannel(o.look))
		if err != nil {
			return nil, fmt.Errorf("look for %s: %w", o.name, err)
		}
		if !there {
			missing = append(missing, o)
		}
	}
	return missing, nil
}

// exists interprets the answer to a look. If the look is refused, the object is
// taken to exist: if it does not, its use fails.
func exists(look error) (bool, error) {
	var e *amqp.Error
	switch {
	case look == nil || isRefused(look):
		return true, nil
	case errors.As(look, &e) && e.Code == amqp.NotFound && !isDown(e):
		return false, nil
	}
	return false, look
}

// isDown reports whether the broker has an object but cannot reach it at
// present. It answers 404 then, too (rabbit_amqqueue, not_found_or_absent).
func isDown(e *amqp.Error) bool {
	for _, why := range []string{"is down or inaccessible", "has crashed and failed to restart", "is stopped by supervisor"} {
		if strings.Contains(e.Reason, why) {
			return true
		}
	}
	return false
}

// isRefused reports whether the user lacks a permission.
func isRefused(err error) bool {
	var e *amqp.Error
	return errors.As(err, &e) && e.Code == amqp.AccessRefused
}

// repair declares objects and bindings that were removed.
func (s *session) repair(t Topology) error {
	if err := s.ensure(t, t.names()); err != nil {
		return err
	}
	return s.onChannel(func(ch *amqp.Channel) error { return bind(ch, t) })
}

// An object is an exchange or a queue.
type object struct {
	kind, name string
	args       amqp.Table
	flags      map[string]string                     // see queue
	earlier    map[string]string                     // see queue
	look       func(*amqp.Channel) error             // fails if it does not exist
	declare    func(*amqp.Channel, amqp.Table) error // with these arguments
}

func (o object) String() string { return "the " + o.kind + " " + o.name }

// objects returns all objects in the order in which they are declared. The
// exchanges come last: a publisher that finds its exchange assumes that the
// queues exist, and the broker would return its messages until they do.
func (t Topology) objects() []object {
	var all []object
	for _, q := range t.queues() {
		all = append(all, object{
			kind:    "queue",
			name:    q.name,
			args:    q.args,
			flags:   q.flags,
			earlier: q.earlier,
			look: func(ch *amqp.Channel) error {
				_, err := ch.QueueDeclarePassive(q.name, true, false, false, false, nil)
				return err
			},
			declare: func(ch *amqp.Channel, args amqp.Table) error {
				_, err := ch.QueueDeclare(q.name, true, false, false, false, args)
				return err
			},
		})
	}
	return append(all,
		exchange(MarksExchange, amqp.ExchangeFanout, nil),
		exchange(OrphanExchange, amqp.ExchangeFanout, nil),
		exchange(DueExchange, amqp.ExchangeDirect, amqp.Table{"alternate-exchange": OrphanExchange}),
		exchange(WaitExchange, amqp.ExchangeDirect, nil),
		exchange(Exchange, amqp.ExchangeDirect, nil))
}

func exchange(name, kind string, args amqp.Table) object {
	return object{
		kind: "exchange",
		name: name,
		args: args,
		look: func(ch *amqp.Channel) error {
			return ch.ExchangeDeclarePassive(name, kind, true, false, false, false, nil)
		},
		declare: func(ch *amqp.Channel, args amqp.Table) error {
			return ch.ExchangeDeclare(name, kind, true, false, false, false, args)
		},
	}
}

// names returns the names of all objects.
func (t Topology) names() []string {
	var names []string
	for _, o := range t.objects() {
		names = append(names, o.name)
	}
	return names
}

// bind binds the queues to the exchanges. It changes nothing if they are bound
// already. It begins with the queue of tasks, the last one in queues, since
// texts may be posted at once.
func bind(ch *amqp.Channel, t Topology) error {
	for _, q := range slices.Backward(t.queues()) {
		if q.key == "" {
			continue
		}
		if err := ch.QueueBind(q.name, q.key, Exchange, false, nil); err != nil {
			return fmt.Errorf("bind the queue %s: %w", q.name, err)
		}
	}
	if err := ch.QueueBind(ResultsQueue, "", MarksExchange, false, nil); err != nil {
		return fmt.Errorf("bind the queue %s to %s: %w", ResultsQueue, MarksExchange, err)
	}
	// One message is the dead letter and tells listeners of it, so that there
	// is never one without the other.
	if err := ch.QueueBind(ResultsQueue, deadKey, Exchange, false, nil); err != nil {
		return fmt.Errorf("bind the queue %s to dead letters: %w", ResultsQueue, err)
	}
	for _, queue := range []string{DeadQueue, ResultsQueue} {
		if err := ch.QueueBind(queue, "", OrphanExchange, false, nil); err != nil {
			return fmt.Errorf("bind the queue %s to %s: %w", queue, OrphanExchange, err)
		}
	}
	if t.Queue != wire.DefaultQueue {
		if err := bindWaiting(ch, wire.DefaultQueue); err != nil {
			return err
		}
	}
	return bindWaiting(ch, t.Queue)
}

// each calls do for all objects, with their index: at the same time for all
// queues, since a quorum queue takes the broker some 20 ms, and then for the
// exchanges. In a cluster it takes one after the other: the broker would count
// no leaders yet for any of them, and put all on the same node. It returns the first error in the order of the objects.
func (s *session) each(objects []object, do func(*amqp.Channel, int, object) error) error {
	errs := make([]error, len(objects))
	var running sync.WaitGroup
	for i, o := range objects {
		if o.kind == "exchange" || s.many {
			running.Wait()
		}
		running.Go(func() { errs[i] = s.onChannel(func(ch *amqp.Channel) error { return do(ch, i, o) }) })
	}
	running.Wait()
	return cmp.Or(errs...)
}
