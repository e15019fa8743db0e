# Everything on one machine, as three lines of configuration give it.
{
  name = "revq-one-machine";

  nodes.machine = {
    services.revq = {
      enable = true;
      rabbitmq.enable = true;
      worker.settings.pause = "1ms";
      # RabbitMQ blocks publishers when the disk has less than this, and the test's is small.
      rabbitmq.diskFreeLimit = "50MB";
    };
    virtualisation.memorySize = 2048;
    virtualisation.diskSize = 4096;
  };

  testScript = ''
    from typing import Callable


    def send(count: int, while_sending: Callable[[], None]) -> None:
        """Sends count texts, and asserts that none is refused and each comes back once."""
        machine.succeed(
            "rm -f /tmp/results /tmp/refused",
            f"seq 100001 {100000 + count} >/tmp/texts",
            "rev /tmp/texts | sort >/tmp/expected",
            f"systemd-run --unit listen --property StandardOutput=file:/tmp/results revq listen --count {count}",
        )
        machine.wait_until_succeeds("grep -q Salut /tmp/results", timeout=60)
        machine.succeed(
            "systemd-run --unit send --property RemainAfterExit=yes revq send --quiet --timeout 2m --file /tmp/texts"
        )
        while_sending()
        machine.wait_until_succeeds("systemctl show -P SubState send | grep -x exited", timeout=300)
        machine.wait_until_fails("systemctl is-active listen", timeout=300)
        machine.succeed("systemctl stop send", "sed 1d /tmp/results | sort | diff - /tmp/expected")


    def restart(unit: str) -> Callable[[], None]:
        def now() -> None:
            machine.succeed(f"systemctl restart {unit}")

        return now


    def kill_worker() -> None:
        machine.succeed("systemctl kill --signal KILL revq-worker@1")


    start_all()
    machine.wait_for_unit("revq.target")
    machine.wait_for_unit("revq-worker@1.service")
    machine.wait_for_unit("revq-worker@2.service")

    with subtest("a text that is sent comes back reversed, to each listener"):
        machine.succeed("test \"$(revq send --wait --text abcdef)\" = fedcba")

    with subtest("two sites of the API and one of the socket server listen on the ports 8081 to 8083, and no others do"):
        for site in (1, 2):
            machine.succeed(f"revq send --url http://localhost:808{site} --text abcdef | grep -x 'Got it'")
        machine.wait_for_open_port(8083)
        machine.wait_for_closed_port(8084)

    with subtest("RabbitMQ and Erlang listen on the loopback interface alone"):
        machine.fail("ss -Hltn | awk '{print $4}' | grep -E ':(4369|5672|25672)$' | grep -v '^127.0.0.1:'")

    with subtest("nobody but root can read the secrets, and they are not in the store"):
        for role in ("api", "socket", "worker", "setup"):
            file = f"/var/lib/revq/{role}.amqp-url"
            machine.succeed(f"stat -Lc '%U %a' {file} | grep -x 'root 600'")
            machine.fail(f"setpriv --reuid=nobody --regid=nogroup --clear-groups cat {file}")
            machine.fail(
                f"sed 's|.*:\\([^@:]*\\)@.*|\\1|' {file} >/tmp/secret && "
                "grep -rqFf /tmp/secret /run/current-system/etc/systemd/"
            )

    with subtest("there is no guest, and each role has no more permissions than it needs"):
        users = machine.succeed("rabbitmqctl -q list_users")
        assert "guest" not in users, users
        permissions = machine.succeed("rabbitmqctl -q list_permissions -p revq")
        assert "revq-api\t^$\t^revq$\t^$" in permissions, permissions

    with subtest("the security score of each service is at most 1.0"):
        for unit in ("revq-api@1", "revq-socket@3", "revq-worker@1", "revq-setup"):
            machine.succeed(f"systemd-analyze security --no-pager --threshold=10 {unit}.service")

    for unit in ("revq-api@1", "revq-socket@3", "revq-worker@1", "revq-worker@2"):
        with subtest(f"{unit} is restarted under load, and no request fails and no result is missing"):
            send(5000, restart(unit))

    with subtest("a worker that is killed loses nothing"):
        send(5000, kill_worker)

    with subtest("RabbitMQ is restarted under load, and texts are taken and come back all the same"):
        send(5000, restart("rabbitmq"))

    with subtest("new secrets take the place of the old ones while texts go through"):
        machine.succeed("cp /var/lib/revq/api.amqp-url /tmp/before")
        send(5000, restart("rabbitmq-revq-rotate"))
        machine.fail("cmp /tmp/before /var/lib/revq/api.amqp-url")

    with subtest("everything is back after the machine was switched off"):
        machine.shutdown()
        machine.start()
        machine.wait_for_unit("revq-worker@1.service")
        machine.succeed("test \"$(revq send --wait --text abcdef)\" = fedcba")
  '';
}
