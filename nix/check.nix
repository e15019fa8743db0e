# What nix/check asks Nix for. The package set may be another one than nixpkgs' own, as long as it can build.
{
  nixpkgs,
  pkgs ? import nixpkgs { },
}:
let
  inherit (pkgs) lib;

  configurations = import ./configurations.nix;

  # Tests run where the package itself is checked.
  package = (pkgs.callPackage ./package.nix { }).overrideAttrs { doCheck = false; };

  evaluate =
    configuration:
    import (nixpkgs + "/nixos/lib/eval-config.nix") {
      system = null;
      modules = [
        ./module.nix
        configuration
        {
          boot.loader.grub.enable = false;
          fileSystems."/".device = "/dev/disk/by-label/nixos";
          fileSystems."/".fsType = "ext4";
          system.stateVersion = lib.trivial.release;
          nixpkgs.pkgs = pkgs;
          services.revq.package = lib.mkDefault package;
        }
      ];
    };

  # NixOS looks at types only where a value is used.
  force =
    value:
    if lib.isDerivation value then
      true
    else if lib.isAttrs value then
      lib.all force (lib.attrValues value)
    else if lib.isList value then
      lib.all force value
    else
      builtins.seq value true;

  checked =
    configuration:
    let
      inherit (evaluate configuration) config;
      failed = lib.filter (a: !a.assertion) config.assertions;
    in
    assert force config.services.revq;
    if failed != [ ] then throw (lib.concatMapStringsSep "\n" (a: a.message) failed) else config;

  # Not all of NixOS: what revq and its broker add to the units of a host.
  ours = lib.filterAttrs (
    name: _:
    lib.any (prefix: lib.hasPrefix prefix name) [
      "revq"
      "rabbitmq"
      "epmd"
      "stop-former-revq"
    ]
  );
in
{
  inherit package;
  wrongNames = lib.concatLines (lib.attrNames configurations.wrong);
  wrongError = lib.mapAttrs (_: wrong: wrong.error) configurations.wrong;
  wrong = lib.mapAttrs (
    _: wrong: (checked wrong.config).systemd.units."revq.target".text
  ) configurations.wrong;

  # The directory that NixOS makes /etc/systemd/system of.
  units = lib.mapAttrs (
    _: configuration:
    let
      config = checked configuration;
      utils = import (nixpkgs + "/nixos/lib/utils.nix") { inherit lib config pkgs; };
    in
    utils.systemdUtils.lib.generateUnits {
      type = "system";
      units = ours config.systemd.units;
      upstreamUnits = [ ];
      upstreamWants = [ ];
      packages = lib.filter (p: lib.hasPrefix "revq" (lib.getName p)) config.systemd.packages;
    }
  ) configurations.right;

  # What /etc/hosts has of the nodes of a cluster.
  clusterHosts = lib.concatLines (
    lib.mapAttrsToList (address: names: "${address} ${toString names}") (
      lib.filterAttrs (
        address: _: lib.hasPrefix "192.0.2." address
      ) (checked configurations.right.clustered).networking.hosts
    )
  );

  # The Python of each test, with the types of what the test driver gives it.
  testScripts = lib.mapAttrs' (
    file: _:
    lib.nameValuePair (lib.removeSuffix ".nix" file) (
      let
        test =
          (pkgs.testers.runNixOSTest {
            imports = [ (./tests + "/${file}") ];
            defaults = ./module.nix;
          }).config;
      in
      lib.concatMapStrings (machine: "${machine} = create_fake_qemu_machine()\n") (
        lib.attrNames test.nodes
      )
      + test.testScriptString
    )
  ) (builtins.readDir ./tests);

  # The page about the options, as NixOS makes that of its manual.
  options =
    (pkgs.nixosOptionsDoc {
      options.services.revq = (evaluate { }).options.services.revq;
      transformOptions = option: option // { declarations = [ ]; };
    }).optionsCommonMark;
}
