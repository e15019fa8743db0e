# revq's programs and unit files. Stands alone: pkgs.callPackage ./nix/package.nix { }
{
  lib,
  stdenv,
  buildGoModule,
  coreutils,
  installShellFiles,
  runtimeShell,
  # As Go itself would write it: 0.0.0-TIME-COMMIT. The flake knows both.
  version ? "0.0.0",
}:

buildGoModule (finalAttrs: {
  pname = "revq";
  inherit version;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../go.mod
      ../go.sum
      ../cmd
      (lib.fileset.difference (lib.fileset.fileFilter (file: !file.hasExt "md") ../internal)
        # other servers to compare with: a Go module of its own
        (lib.fileset.maybeMissing ../internal/bench/compare)
      )
      (lib.fileset.fileFilter (file: !file.hasExt "md") ../systemd)
    ];
  };

  # After a change of go.mod or go.sum: nix/check vendor --fix
  vendorHash = "sha256-fXGyXCSaEdUj2Fdrh45YuUSmQBU2mUEhJQKpsb9ax4k=";

  # The dependencies are fetched when go.sum changes, not with each version.
  goSum = ../go.sum;
  overrideModAttrs = _: previous: {
    name = lib.replaceString "-${finalAttrs.version}" "" previous.name;
  };

  env.CGO_ENABLED = 0;

  ldflags = [
    "-s"
    "-w"
    "-X github.com/revq/revq/internal/command.version=v${finalAttrs.version}"
  ];

  # There is no RabbitMQ in the build: what needs one skips itself.
  # Nor is there a systemd to look at the units; nix/check does.
  checkFlags = [
    "-short"
    "-skip=^TestUnits$"
  ];

  nativeBuildInputs = [ installShellFiles ];

  postInstall = ''
    units=$out/lib/systemd/system
    install -D -m 444 -t $units systemd/revq*.{service,socket,target,slice}
    for directory in systemd/revq-*.d; do
      install -D -m 444 -t $units/''${directory#systemd/} $directory/*.conf
    done
    substituteInPlace $units/*.service --replace-quiet /usr/local/bin/ $out/bin/
    # NixOS has /bin/sh, which is not to be relied on, and nothing else in /bin.
    substituteInPlace $units/revq-{api,socket,worker}@.service --replace-fail '/bin/kill -HUP $MAINPID' "${runtimeShell} -c 'kill -HUP \$MAINPID'"
    substituteInPlace $units/revq-{api,socket,worker}@.service \
      --replace-fail /bin/sh ${runtimeShell} \
      --replace-fail 'exec sleep' 'exec ${lib.getExe' coreutils "sleep"}'

    if grep -nE '[= ](/bin|/usr)/' $units/*; then
      echo "units name programs that NixOS does not have, see above" >&2
      exit 1
    fi

    install -D -m 444 -t $out/share/revq systemd/monitoring/alerts.yml
    install -D -m 444 systemd/monitoring/dashboard.json $out/share/revq/dashboards/revq.json

    # Makes revq's users at a RabbitMQ: install broker
    install -D -m 555 -t $out/libexec/revq systemd/install
  ''
  + lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    $out/bin/revq man $out/share/man
    for program in $out/bin/*; do
      installShellCompletion --cmd "''${program##*/}" \
        --bash <("$program" completion bash) \
        --fish <("$program" completion fish) \
        --zsh <("$program" completion zsh)
    done
  '';

  meta = {
    description = "Task queue over RabbitMQ whose results are pushed to listeners";
    homepage = "https://github.com/revq/revq";
    license = lib.licenses.mit;
    mainProgram = "revq";
    platforms = lib.platforms.linux;
  };
})
