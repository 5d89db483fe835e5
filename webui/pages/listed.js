// Adds to the form's values the folder and dataset that it held before, to which its list of images belongs.
(_, ...entered) => {
  const before = window.sdxlLoraBefore ?? null;
  window.sdxlLoraBefore = { folder: entered[FOLDER_AT], dataset: entered[DATASET_AT] };
  return [JSON.stringify(before), ...entered];
}
